# As published: https://github.com/Visual-Attention-Network/VAN-Segmentation. The published weights start from
# ImageNet-22k.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="van_b5", drop_path_rate=0.4, norm_eps=1e-5),
    decode_head=dict(in_channels=[96, 192, 480, 768]),
    auxiliary_head=dict(in_channels=480),
)
