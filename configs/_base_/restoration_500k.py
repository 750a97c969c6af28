# From scratch.
_base_ = "restoration_runtime.py"

optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=[250000, 400000, 450000, 475000], gamma=0.5)]
train_cfg = dict(max_iters=500000, val_interval=5000)
default_hooks = dict(checkpoint=dict(interval=5000))
