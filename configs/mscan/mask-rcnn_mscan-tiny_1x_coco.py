# No recipe is published for this pair: Swin's.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

model = dict(backbone=dict(model_name="mscan_tiny", drop_path_rate=0.1), neck=dict(in_channels=[32, 64, 160, 256]))
