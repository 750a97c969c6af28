# No recipe is published for this pair: that of Agent-Swin, by the same authors on the same body.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="inline_swin_tiny", drop_path_rate=0.3, stage_norms=dict(type="layernorm2d", eps=1e-5)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
