# No recipe is published for this pair: BEVFormer's own of its smallest size, with the backbone of BiFormer's detectors.
_base_ = "../_base_/bevformer-tiny_24e_nuscenes.py"

model = dict(
    backbone=dict(
        type="attnzoo.Backbone",
        model_name="biformer_small",
        out_indices=(3,),
        drop_path_rate=0.2,
        n_win=16,
        stage_norms="layernorm2d",
        norm_eval=True,
    ),
    neck=dict(in_channels=[512]),
)
