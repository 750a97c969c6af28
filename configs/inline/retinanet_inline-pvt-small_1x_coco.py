# No recipe is published for this pair: PVT's.
_base_ = "../_base_/retinanet_1x_coco.py"

model = dict(backbone=dict(model_name="inline_pvt_small", drop_path_rate=0.1), neck=dict(in_channels=[128, 320, 512]))
