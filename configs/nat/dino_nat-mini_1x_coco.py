# No recipe is published for this pair: DINO's own, with the backbone as NAT's detectors have it.
_base_ = "../_base_/dino_1x_coco.py"

model = dict(
    backbone=dict(model_name="nat_mini", drop_path_rate=0.2, stage_norms=dict(type="layernorm2d", eps=1e-5)),
    neck=dict(in_channels=[128, 256, 512]),
)
