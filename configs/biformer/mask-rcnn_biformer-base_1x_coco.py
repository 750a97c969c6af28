# As published: https://github.com/rayleizhu/BiFormer.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

model = dict(
    backbone=dict(model_name="biformer_base", drop_path_rate=0.3, n_win=16, stage_norms="layernorm2d", norm_eval=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
