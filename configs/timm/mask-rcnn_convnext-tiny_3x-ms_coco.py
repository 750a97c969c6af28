# mmdetection's config for ConvNeXt. mmdetection decays the learning rate by groups of layers, timm by layers: this
# factor gives the stem the same.
_base_ = "../_base_/mask-rcnn_3x-ms_coco.py"

model = dict(backbone=dict(model_name="convnext_tiny", drop_path_rate=0.4), neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="attnzoo.LayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.95 ** (7 / 19)),
)
