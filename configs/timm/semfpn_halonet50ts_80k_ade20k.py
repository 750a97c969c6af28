# No recipe is published for this pair: PVT's. Blocks of 8 at stride 32 need multiples of 256: images are padded to
# them.
_base_ = "../_base_/semfpn_80k_ade20k.py"

model = dict(
    backbone=dict(model_name="halonet50ts", out_indices=(1, 2, 3, 4)),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
    data_preprocessor=dict(test_cfg=dict(size_divisor=256)),
)
