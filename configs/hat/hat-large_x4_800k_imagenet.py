# HAT-L ×4 on ImageNet, to start from.
# Source: XPixelGroup/HAT, options/train/train_HAT-L_SRx4_ImageNet_from_scratch.yml.
_base_ = ["../_base_/restoration_imagenet.py", "../_base_/restoration_800k.py"]

model = dict(model_name="hat_large_x4")
train_dataloader = dict(dataset=dict(scale=4))
val_dataloader = dict(dataset=dict(scale=4, data_prefix=dict(gt="Set5/GTmod4", img="Set5/LRbicx4")))
test_dataloader = val_dataloader
