# As published: https://github.com/Visual-Attention-Network/SegNeXt.
_base_ = "../_base_/light-ham_160k_ade20k.py"

model = dict(backbone=dict(model_name="mscan_tiny", drop_path_rate=0.1), decode_head=dict(in_channels=[64, 160, 256]))
