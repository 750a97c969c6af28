# No recipe is published for this pair: mmdetection's for Swin.
_base_ = "../_base_/rtmdet_100e_coco.py"

model = dict(backbone=dict(model_name="mscan_small", drop_path_rate=0.1), neck=dict(in_channels=[128, 320, 512]))
