# No recipe is published for this pair: Mask2Former's own, with the backbone as BiFormer's UPerNet has it.
_base_ = "../_base_/mask2former_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="biformer_small", drop_path_rate=0.3, n_win=8, stage_norms="layernorm2d"),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
