# RetinaNet, 12 epochs, AdamW as PVT trained it (https://arxiv.org/abs/2102.12122).
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

# Stride 4 is left out here, not in the neck: parameters that no loss reaches stop a distributed run.
model = dict(
    backbone=dict(_delete_=True, type="attnzoo.Backbone", out_indices=(1, 2, 3)),
    neck=dict(start_level=0),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=1e-4))
