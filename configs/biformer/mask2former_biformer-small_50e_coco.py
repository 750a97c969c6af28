# No recipe is published for this pair: Mask2Former's own, with the backbone as BiFormer's detectors have it.
_base_ = "../_base_/mask2former_50e_coco.py"

model = dict(
    backbone=dict(model_name="biformer_small", drop_path_rate=0.2, n_win=16, stage_norms="layernorm2d", norm_eval=True),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)
