# No recipe is published for this pair: DINO's own.
_base_ = "../_base_/dino_1x_coco.py"

model = dict(backbone=dict(model_name="convnext_tiny", drop_path_rate=0.2), neck=dict(in_channels=[192, 384, 768]))
