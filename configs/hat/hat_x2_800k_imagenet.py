# HAT ×2 on ImageNet, to start from.
# Source: XPixelGroup/HAT, options/train/train_HAT_SRx2_ImageNet_from_scratch.yml.
_base_ = ["../_base_/restoration_imagenet.py", "../_base_/restoration_800k.py"]

model = dict(model_name="hat_x2")
train_dataloader = dict(dataset=dict(scale=2))
val_dataloader = dict(dataset=dict(scale=2, data_prefix=dict(gt="Set5/GTmod2", img="Set5/LRbicx2")))
test_dataloader = val_dataloader
