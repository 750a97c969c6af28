# As published: https://github.com/SHI-Labs/Neighborhood-Attention-Transformer. Windows of 11; the published weights
# start from ImageNet-22k. Crops of 640.
_base_ = "../_base_/mask2former_160k_ade20k.py"

crop_size = (640, 640)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(
        type="RandomChoiceResize",
        scales=[int(640 * x * 0.1) for x in range(5, 21)],
        resize_type="ResizeShortestEdge",
        max_size=2560,
    ),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=1.0),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2560, 640), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]

# Like the rest of the backbone a tenth of the learning rate, but no weight decay.
norm = dict(lr_mult=0.1, decay_mult=0.0)
norms = {"backbone.model.stem.2": norm, "backbone.extra_norms": norm}
norms.update({f"backbone.model.stages.{stage}.downsample.1": norm for stage in range(1, 4)})
norms.update(
    {
        f"backbone.model.stages.{stage}.blocks.{block}.norm": norm
        for stage, depth in enumerate((3, 4, 18, 5))
        for block in range(depth)
    }
)

model = dict(
    backbone=dict(
        model_name="dinat_large_384_11x11",
        drop_path_rate=0.3,
        dilations=((1, 14), (1, 4, 1, 7), (1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 3), (1,)),
        stage_norms=dict(type="layernorm2d", eps=1e-5),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    data_preprocessor=dict(size=crop_size),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=norms))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
