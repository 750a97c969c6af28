# From the weights of another run.
_base_ = "restoration_runtime.py"

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=[125000, 200000, 225000, 240000], gamma=0.5)]
train_cfg = dict(max_iters=250000, val_interval=5000)
default_hooks = dict(checkpoint=dict(interval=5000))
