# As published: https://github.com/mlpc-ucsd/CoaT. All is decayed.
_base_ = "../_base_/mask-rcnn_1x-ms_coco.py"

model = dict(backbone=dict(model_name="coat_mini", drop_path_rate=0.0), neck=dict(in_channels=[152, 216, 216, 216]))
optim_wrapper = dict(paramwise_cfg=None)
