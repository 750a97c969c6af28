# As published: https://github.com/Gsunshine/Enjoy-Hamburger (seg_light_ham); the head learns at the common rate.
_base_ = "../_base_/light-ham_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="van_b3", drop_path_rate=0.25),
    decode_head=dict(in_channels=[128, 320, 512], channels=512, ham_channels=512, ham_kwargs=dict(MD_R=64)),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=1.0))))
