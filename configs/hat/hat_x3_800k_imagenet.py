# HAT ×3 on ImageNet, to start from.
# Source: XPixelGroup/HAT, options/train/train_HAT_SRx3_ImageNet_from_scratch.yml.
_base_ = ["../_base_/restoration_imagenet.py", "../_base_/restoration_800k.py"]

model = dict(model_name="hat_x3")
train_dataloader = dict(dataset=dict(scale=3))
val_dataloader = dict(dataset=dict(scale=3, data_prefix=dict(gt="Set5/GTmod3", img="Set5/LRbicx3")))
test_dataloader = val_dataloader
