# No recipe is published for this pair: BEVFormer's own of its smallest size, with timm's ResNet-50.
_base_ = "../_base_/bevformer-tiny_24e_nuscenes.py"

model = dict(
    backbone=dict(type="attnzoo.Backbone", model_name="resnet50", out_indices=(4,), frozen_stages=1, norm_eval=True),
    neck=dict(in_channels=[2048]),
)
