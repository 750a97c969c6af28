# The handwritten digits that `attnzoo demo` sets into photographs, as two classes; 1200 images to train, 200 held out.
default_scope = "mmseg"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

data_root = "work_dirs/demo/data/"
metainfo = dict(classes=("photo", "digit"), palette=[(40, 40, 60), (255, 225, 25)])

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(160, 160), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        data_prefix=dict(img_path="train", seg_map_path="seg_maps/train"),
        img_suffix=".png",
        seg_map_suffix=".png",
        reduce_zero_label=False,
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        data_prefix=dict(img_path="val", seg_map_path="seg_maps/val"),
        img_suffix=".png",
        seg_map_suffix=".png",
        reduce_zero_label=False,
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1, save_best="mIoU", rule="greater"),
)
