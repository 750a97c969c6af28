# HAT-S ×2 on DF2K, from scratch.
# Source: XPixelGroup/HAT, options/train/train_HAT-S_SRx2_from_scratch.yml.
_base_ = ["../_base_/restoration_df2k.py", "../_base_/restoration_500k.py"]

model = dict(model_name="hat_small_x2")
train_dataloader = dict(dataset=dict(scale=2, data_prefix=dict(img="DF2K/DF2K_bicx2_sub")))
val_dataloader = dict(dataset=dict(scale=2, data_prefix=dict(gt="Set5/GTmod2", img="Set5/LRbicx2")))
test_dataloader = val_dataloader
train_cfg = dict(val_interval=20000)
default_hooks = dict(checkpoint=dict(interval=20000))
