# No recipe is published for this pair: DINO's own, with the backbone as BiFormer's detectors have it.
_base_ = "../_base_/dino_1x_coco.py"

model = dict(
    backbone=dict(model_name="biformer_small", drop_path_rate=0.2, n_win=16, stage_norms="layernorm2d", norm_eval=True),
    neck=dict(in_channels=[128, 256, 512]),
)
