# mask-rcnn_biformer-small_1x_coco with albumentations in place of the mm library's flip and distortions.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

augmentation = dict(
    type="attnzoo.Albumentations",
    transforms=[
        dict(type="HorizontalFlip", p=0.5),
        dict(type="RandomBrightnessContrast", p=0.3),
        dict(type="HueSaturationValue", p=0.3),
        dict(type="OneOf", p=0.2, transforms=[dict(type="Blur", blur_limit=3), dict(type="GaussNoise")]),
    ],
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    augmentation,
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

model = dict(
    backbone=dict(model_name="biformer_small", drop_path_rate=0.2, n_win=16, stage_norms="layernorm2d", norm_eval=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
