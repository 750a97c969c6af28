# As published: https://github.com/mlpc-ucsd/CoaT. All is decayed.
_base_ = "../_base_/cascade-mask-rcnn_3x-ms_coco.py"

model = dict(
    backbone=dict(model_name="coat_lite_small", drop_path_rate=0.0), neck=dict(in_channels=[64, 128, 320, 512])
)
optim_wrapper = dict(paramwise_cfg=None)
