# No recipe is published for this pair: BEVFormer's own of its smallest size, which fits one GPU.
_base_ = "../_base_/bevformer-tiny_24e_nuscenes.py"

model = dict(
    backbone=dict(type="attnzoo.Backbone", model_name="van_b2", out_indices=(3,), drop_path_rate=0.1, norm_eps=1e-5),
    neck=dict(in_channels=[512]),
)
