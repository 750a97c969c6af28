# Semantic FPN, 80,000 iterations of 16 images, AdamW as PVT trained it (https://arxiv.org/abs/2102.12122).
# mmengine looks for `mmseg::` under the name of a distribution that need not be the installed one, so: a path.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

model = dict(
    pretrained=None,
    data_preprocessor=dict(test_cfg=dict(size_divisor=32)),
    backbone=dict(_delete_=True, type="attnzoo.Backbone"),
)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=1e-4))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=80000, by_epoch=False)]
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(enable=False, base_batch_size=16)
