# As published: https://github.com/Visual-Attention-Network/VAN-Segmentation. 32 images an iteration.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="van_b4", drop_path_rate=0.4, norm_eps=1e-5),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
