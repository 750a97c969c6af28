# HAT ×3 on DF2K, from ImageNet.
# Source: XPixelGroup/HAT, options/train/train_HAT_SRx3_finetune_from_ImageNet_pretrain.yml.
_base_ = ["../_base_/restoration_df2k.py", "../_base_/restoration_250k.py"]

model = dict(
    model_name="hat_x3",
    init_cfg=dict(type="Pretrained", checkpoint="work_dirs/hat_x3_800k_imagenet/iter_800000.pth"),
)
train_dataloader = dict(dataset=dict(scale=3, data_prefix=dict(img="DF2K/DF2K_bicx3_sub")))
val_dataloader = dict(dataset=dict(scale=3, data_prefix=dict(gt="Set5/GTmod3", img="Set5/LRbicx3")))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-5))
