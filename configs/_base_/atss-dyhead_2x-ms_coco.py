# ATSS with DyHead, 24 epochs at several sizes, as published for Swin (https://arxiv.org/abs/2106.08322).
_base_ = "mmdet::dyhead/atss_swin-l-p4-w12_fpn_dyhead_ms-2x_coco.py"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

model = dict(backbone=dict(_delete_=True, type="attnzoo.Backbone", out_indices=(1, 2, 3)))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
