# GFL on a ResNet of four narrow blocks, from scratch: the detector of `attnzoo compare`, here without attention.
# `attention=dict(type="ela", stages=(2, 3, 4), identity=False)` in its backbone puts ELA behind three stages.
_base_ = "../biformer/gfl_biformer_4e_digits.py"

sizes = dict(layers=(1, 1, 1, 1), channels=(16, 32, 64, 128), stem_type="deep", stem_width=8)

model = dict(
    backbone=dict(_delete_=True, type="attnzoo.Backbone", model_name="resnet18", out_indices=(2, 3, 4), **sizes),
    neck=dict(in_channels=list(sizes["channels"][1:]), out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)

epochs = 2
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", T_max=epochs, by_epoch=True, convert_to_iter_based=True),
]
