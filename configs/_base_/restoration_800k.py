# Long, from scratch, on ImageNet.
_base_ = "restoration_runtime.py"

optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type="MultiStepLR", by_epoch=False, milestones=[300000, 500000, 650000, 700000, 750000], gamma=0.5)
]
train_cfg = dict(max_iters=800000, val_interval=10000)
default_hooks = dict(checkpoint=dict(interval=10000))
