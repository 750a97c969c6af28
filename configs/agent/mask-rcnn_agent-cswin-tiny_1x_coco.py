# No recipe is published for this pair: Swin's.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

undecayed = ("an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias")

model = dict(
    backbone=dict(model_name="agent_cswin_tiny", drop_path_rate=0.2), neck=dict(in_channels=[64, 128, 256, 512])
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in undecayed}))
