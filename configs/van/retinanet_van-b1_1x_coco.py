# No recipe is published for this pair: PVT's, as the other pyramids take it.
_base_ = "../_base_/retinanet_1x_coco.py"

model = dict(
    backbone=dict(model_name="van_b1", drop_path_rate=0.1, norm_eps=1e-5), neck=dict(in_channels=[128, 320, 512])
)
