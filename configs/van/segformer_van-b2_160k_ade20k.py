# The figure is published (in the table of Enjoy-Hamburger's README), the recipe is not: SegFormer's own.
_base_ = "../_base_/segformer_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="van_b2", drop_path_rate=0.1, norm_eps=1e-5),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)
