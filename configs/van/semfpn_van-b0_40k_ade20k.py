# As published: https://github.com/Visual-Attention-Network/VAN-Segmentation.
_base_ = "../_base_/semfpn_40k_ade20k.py"

model = dict(
    backbone=dict(model_name="van_b0", drop_path_rate=0.2, norm_eps=1e-5), neck=dict(in_channels=[32, 64, 160, 256])
)
