# Mask R-CNN, 12 epochs at one size, AdamW as Swin trained it (https://arxiv.org/abs/2103.14030).
_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

model = dict(backbone=dict(_delete_=True, type="attnzoo.Backbone"))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
