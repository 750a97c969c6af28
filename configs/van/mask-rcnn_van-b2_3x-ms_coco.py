# The paper names Swin's recipe; its drop path is not told, here it is UPerNet's.
_base_ = "../_base_/mask-rcnn_3x-ms_coco.py"

model = dict(
    backbone=dict(model_name="van_b2", drop_path_rate=0.1, norm_eps=1e-5), neck=dict(in_channels=[64, 128, 320, 512])
)
