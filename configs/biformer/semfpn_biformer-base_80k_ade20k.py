# As published: https://github.com/rayleizhu/BiFormer. 32 images an iteration, cosine schedule.
_base_ = "../_base_/semfpn_80k_ade20k.py"

model = dict(
    backbone=dict(model_name="biformer_base", drop_path_rate=0.3, n_win=8, stage_norms="layernorm2d"),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=1000, by_epoch=False),
    dict(type="CosineAnnealingLR", eta_min=2e-12, begin=1000, end=80000, by_epoch=False),
]
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
