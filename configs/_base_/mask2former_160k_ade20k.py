# Mask2Former for semantic segmentation, 160,000 iterations of 16 images (https://arxiv.org/abs/2112.01527).
# mmengine looks for `mmseg::` under the name of a distribution that need not be the installed one, so: a path.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py"
# The head is mmdetection's, which needs the operators that attnzoo.heads brings.
custom_imports = dict(imports=["attnzoo.heads", "mmdet.models"], allow_failed_imports=False)

model = dict(backbone=dict(_delete_=True, type="attnzoo.Backbone"))
