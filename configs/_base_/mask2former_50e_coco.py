# Mask2Former for instances, 50 epochs with large-scale jitter (https://arxiv.org/abs/2112.01527).
_base_ = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

model = dict(backbone=dict(_delete_=True, type="attnzoo.Backbone"))
