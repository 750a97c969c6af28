# The figure is published (https://github.com/dingmyu/davit), the recipe is that of DaViT-T: the repository has no
# other. All is decayed.
_base_ = "../_base_/mask-rcnn_1x-ms_coco.py"

model = dict(
    backbone=dict(model_name="davit_small", drop_path_rate=0.1, stage_norms=dict(type="layernorm2d", eps=1e-5)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=None)
