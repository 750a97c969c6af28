# HAT-S ×3 on DF2K, from scratch.
# Source: XPixelGroup/HAT, options/train/train_HAT-S_SRx3_from_scratch.yml.
_base_ = ["../_base_/restoration_df2k.py", "../_base_/restoration_500k.py"]

model = dict(model_name="hat_small_x3")
train_dataloader = dict(dataset=dict(scale=3, data_prefix=dict(img="DF2K/DF2K_bicx3_sub")))
val_dataloader = dict(dataset=dict(scale=3, data_prefix=dict(gt="Set5/GTmod3", img="Set5/LRbicx3")))
test_dataloader = val_dataloader
train_cfg = dict(val_interval=20000)
default_hooks = dict(checkpoint=dict(interval=20000))
