# Semantic FPN, 40,000 iterations of 32 images at twice the learning rate, the other form of PVT's recipe.
_base_ = "semfpn_80k_ade20k.py"

optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=40000, by_epoch=False)]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
