# No recipe is published for this pair: Swin's schedule, with ViTDet's neck, weight decay and layer-wise decay
# (https://arxiv.org/abs/2203.16527).
_base_ = "../_base_/mask-rcnn_3x-ms_coco.py"

model = dict(
    backbone=dict(model_name="agent_deit_small", out_indices=(-1,), drop_path_rate=0.1),
    neck=dict(_delete_=True, type="attnzoo.SimpleFeaturePyramid", in_channels=384),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="attnzoo.LayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(layer_decay=0.7),
)
