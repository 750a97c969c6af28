# Super-resolution on DF2K (DIV2K and Flickr2K, cut into overlapping pictures of 480 pixels as BasicSR's
# docs/DatasetPreparation.md tells), tested on Set5. Low-resolution images are those of MATLAB's bicubic imresize; with
# data_prefix.img=None they are made by the same rule while training.
# Source: XPixelGroup/HAT, options/train/*.yml.
default_scope = "mmengine"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

data_root = "data/"

train_pipeline = [
    dict(type="attnzoo.LoadImagePair"),
    dict(type="attnzoo.PairedRandomCrop", img_size=64),
    # The published flips and quarter turns: all eight of the square, each as likely.
    dict(type="attnzoo.Albumentations", transforms=[dict(type="D4", p=1.0)]),
    dict(type="attnzoo.PackImagePair"),
]
test_pipeline = [dict(type="attnzoo.LoadImagePair"), dict(type="attnzoo.PackImagePair")]
train_dataloader = dict(
    batch_size=4,
    num_workers=6,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="attnzoo.PairedImageDataset",
        data_root=data_root,
        data_prefix=dict(gt="DF2K/DF2K_HR_sub"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="attnzoo.PairedImageDataset", data_root=data_root, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
# Both leave out a border as wide as the scale.
val_evaluator = [dict(type="attnzoo.PSNR"), dict(type="attnzoo.SSIM")]
test_evaluator = val_evaluator
