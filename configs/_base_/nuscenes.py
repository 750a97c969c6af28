# nuScenes' 3-D detection from six cameras, as BEVFormer trains and tests it: https://www.nuscenes.org.
# Source of pipelines and classes: fundamentalvision/BEVFormer, projects/configs/bevformer: 1 sample a GPU on 8 GPUs.
default_scope = "mmengine"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

data_root = "data/nuscenes/"
version = "v1.0-trainval"

train_pipeline = [
    dict(type="attnzoo.LoadMultiViewImages"),
    dict(type="attnzoo.MultiViewPhotoMetricDistortion"),
    dict(type="attnzoo.BoxRangeFilter", point_range=[-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]),
    dict(type="attnzoo.PackBEVInputs"),
]
test_pipeline = [dict(type="attnzoo.LoadMultiViewImages"), dict(type="attnzoo.PackBEVInputs")]
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="attnzoo.NuScenesDataset", data_root=data_root, version=version, split="train", pipeline=train_pipeline
    ),
)
# Whole scenes go to each process, so that no history is cut off.
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="attnzoo.SceneSampler"),
    dataset=dict(
        type="attnzoo.NuScenesDataset",
        data_root=data_root,
        version=version,
        split="val",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="attnzoo.NuScenesMetric", data_root=data_root, version=version, split="val")
test_evaluator = val_evaluator
auto_scale_lr = dict(enable=False, base_batch_size=8)
