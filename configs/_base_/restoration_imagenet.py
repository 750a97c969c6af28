# Super-resolution on ImageNet, to start from: low-resolution images are made while training and not rounded, and images
# that are too small are enlarged. Source: XPixelGroup/HAT, hat/data/imagenet_paired_dataset.py.
_base_ = "restoration_df2k.py"

train_pipeline = [
    dict(type="attnzoo.LoadImagePair", quantize=False, min_size=64),
    *_base_.train_pipeline[1:],
]
train_dataloader = dict(dataset=dict(data_prefix=dict(gt="ImageNet/GT"), pipeline=train_pipeline))
