# What all published trainings of HAT share. Source: XPixelGroup/HAT, options/train/*.yml: 4 images a GPU on 8 GPUs.
# Their option files leave stochastic depth at the default of their code, 0.1.
model = dict(type="attnzoo.Restorer", drop_path_rate=0.1)

train_cfg = dict(type="IterBasedTrainLoop")
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", betas=(0.9, 0.99), weight_decay=0.0))
auto_scale_lr = dict(enable=False, base_batch_size=32)
# A checkpoint's weights are the averaged ones (decay 0.999), the published `params_ema`.
custom_hooks = [dict(type="EMAHook", momentum=0.001)]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=100),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, max_keep_ckpts=3, save_best="PSNR", rule="greater"),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
