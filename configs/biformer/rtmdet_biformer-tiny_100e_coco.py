# No recipe is published for this pair: mmdetection's for Swin, with the backbone as BiFormer's detectors have it.
_base_ = "../_base_/rtmdet_100e_coco.py"

model = dict(
    backbone=dict(model_name="biformer_tiny", drop_path_rate=0.1, n_win=16, stage_norms="layernorm2d", norm_eval=True),
    neck=dict(in_channels=[128, 256, 512]),
)
