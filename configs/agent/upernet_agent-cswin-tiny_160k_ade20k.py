# No recipe is published for this pair: Swin's.
_base_ = "../_base_/upernet_160k_ade20k.py"

undecayed = ("an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias")

model = dict(
    backbone=dict(model_name="agent_cswin_tiny", drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in undecayed}))
