# No recipe is published for this pair: that of ResNet-50 in the mm libraries.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

model = dict(
    backbone=dict(model_name="resnet50_ela", out_indices=(1, 2, 3, 4), frozen_stages=1, norm_eval=True),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
optim_wrapper = dict(
    _delete_=True, type="OptimWrapper", optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4)
)
