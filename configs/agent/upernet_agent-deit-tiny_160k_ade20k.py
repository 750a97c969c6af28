# No recipe is published for this pair: Swin's, with ViTDet's neck.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="agent_deit_tiny", out_indices=(-1,), drop_path_rate=0.1),
    decode_head=dict(in_channels=[256, 256, 256, 256]),
    auxiliary_head=dict(in_channels=256),
    neck=dict(type="attnzoo.SimpleFeaturePyramid", in_channels=192, strides=(4, 8, 16, 32)),
)
