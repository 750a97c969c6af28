# SegFormer's all-MLP decoder, 160,000 iterations of 16 images (https://arxiv.org/abs/2105.15203).
# mmengine looks for `mmseg::` under the name of a distribution that need not be the installed one, so: a path.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

model = dict(backbone=dict(_delete_=True, type="attnzoo.Backbone"))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
auto_scale_lr = dict(enable=False, base_batch_size=16)
