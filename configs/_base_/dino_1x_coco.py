# DINO with four scales, 12 epochs (https://arxiv.org/abs/2203.03605).
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

model = dict(backbone=dict(_delete_=True, type="attnzoo.Backbone", out_indices=(1, 2, 3)))
auto_scale_lr = dict(enable=False)
