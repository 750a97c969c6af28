# No recipe is published for this pair: SegFormer's own.
_base_ = "../_base_/segformer_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="coat_lite_small", drop_path_rate=0.0), decode_head=dict(in_channels=[64, 128, 320, 512])
)
