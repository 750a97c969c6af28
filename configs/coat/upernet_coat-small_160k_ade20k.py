# No recipe is published for this pair: Swin's.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="coat_small", drop_path_rate=0.2),
    decode_head=dict(in_channels=[152, 320, 320, 320]),
    auxiliary_head=dict(in_channels=320),
)
