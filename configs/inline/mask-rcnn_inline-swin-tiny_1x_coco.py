# No recipe is published for this pair: that of Agent-Swin, by the same authors on the same body.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

model = dict(
    backbone=dict(model_name="inline_swin_tiny", drop_path_rate=0.1, stage_norms=dict(type="layernorm2d", eps=1e-5)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
