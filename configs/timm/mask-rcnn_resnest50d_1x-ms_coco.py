# mmdetection's config for ResNeSt: batch norm in the heads, the sizes of its multi-scale training.
_base_ = "mmdet::resnest/mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_coco.py"

model = dict(
    backbone=dict(
        _delete_=True, type="attnzoo.Backbone", model_name="resnest50d", out_indices=(1, 2, 3, 4), frozen_stages=1
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)
