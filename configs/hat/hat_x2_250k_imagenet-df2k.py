# HAT ×2 on DF2K, from ImageNet.
# Source: XPixelGroup/HAT, options/train/train_HAT_SRx2_finetune_from_ImageNet_pretrain.yml.
_base_ = ["../_base_/restoration_df2k.py", "../_base_/restoration_250k.py"]

model = dict(
    model_name="hat_x2",
    init_cfg=dict(type="Pretrained", checkpoint="work_dirs/hat_x2_800k_imagenet/iter_800000.pth"),
)
train_dataloader = dict(dataset=dict(scale=2, data_prefix=dict(img="DF2K/DF2K_bicx2_sub")))
val_dataloader = dict(dataset=dict(scale=2, data_prefix=dict(gt="Set5/GTmod2", img="Set5/LRbicx2")))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-5))
