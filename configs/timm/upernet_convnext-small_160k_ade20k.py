# mmsegmentation's config for ConvNeXt. It decays the learning rate by stages, timm by layers: this factor gives the
# stem the same.
_base_ = "../_base_/upernet_160k_ade20k.py"

model = dict(
    backbone=dict(model_name="convnext_small", drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="attnzoo.LayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.9 ** (13 / 37)),
)
