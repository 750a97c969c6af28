# No recipe is published for this pair: Swin's.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

model = dict(
    backbone=dict(model_name="van_b0", drop_path_rate=0.1, norm_eps=1e-5), neck=dict(in_channels=[32, 64, 160, 256])
)
