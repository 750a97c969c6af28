# No recipe is published for this pair: BEVFormer's own of its smallest size, with dilations that fit the image.
_base_ = "../_base_/bevformer-tiny_24e_nuscenes.py"

model = dict(
    backbone=dict(
        type="attnzoo.Backbone",
        model_name="dinat_mini",
        out_indices=(3,),
        drop_path_rate=0.2,
        dilations=((1, 16), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2)),
        stage_norms=dict(type="layernorm2d", eps=1e-5),
    ),
    neck=dict(in_channels=[512]),
)
