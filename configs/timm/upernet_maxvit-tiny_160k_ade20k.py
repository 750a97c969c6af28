# No recipe is published for this pair: Swin's. Windows and grids of 7 at stride 32 need multiples of 224: images are
# padded to them.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="maxvit_tiny_tf_224", out_indices=(1, 2, 3, 4), drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
    data_preprocessor=dict(size=(672, 672), test_cfg=dict(size_divisor=224)),
)
