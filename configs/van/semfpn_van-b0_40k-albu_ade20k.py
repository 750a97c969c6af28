# semfpn_van-b0_40k_ade20k with albumentations in place of the mm library's flip and distortions.
_base_ = "../_base_/semfpn_40k_ade20k.py"

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
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
    augmentation,
    dict(type="PackSegInputs"),
]

model = dict(
    backbone=dict(model_name="van_b0", drop_path_rate=0.2, norm_eps=1e-5), neck=dict(in_channels=[32, 64, 160, 256])
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
