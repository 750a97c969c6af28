# No recipe is published for this pair: Mask2Former's own.
_base_ = "../_base_/mask2former_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="van_b2", drop_path_rate=0.1, norm_eps=1e-5),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)
