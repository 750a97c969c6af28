# HAT-S ×4 on DF2K, from ×2.
# Source: XPixelGroup/HAT, options/train/train_HAT-S_SRx4_finetune_from_SRx2.yml.
_base_ = ["../_base_/restoration_df2k.py", "../_base_/restoration_250k.py"]

model = dict(
    model_name="hat_small_x4",
    init_cfg=dict(
        type="Pretrained", checkpoint="work_dirs/hat-small_x2_500k_df2k/iter_500000.pth", model_name="hat_small_x2"
    ),
)
train_dataloader = dict(dataset=dict(scale=4, data_prefix=dict(img="DF2K/DF2K_bicx4_sub")))
val_dataloader = dict(dataset=dict(scale=4, data_prefix=dict(gt="Set5/GTmod4", img="Set5/LRbicx4")))
test_dataloader = val_dataloader
train_cfg = dict(val_interval=20000)
default_hooks = dict(checkpoint=dict(interval=20000))
