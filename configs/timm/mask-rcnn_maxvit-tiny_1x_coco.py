# No recipe is published for this pair: Swin's. Windows and grids of 7 at stride 32 need multiples of 224: images are
# padded to them.
_base_ = "../_base_/mask-rcnn_1x_coco.py"

model = dict(
    backbone=dict(model_name="maxvit_tiny_tf_224", out_indices=(1, 2, 3, 4), drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
    data_preprocessor=dict(pad_size_divisor=224),
)
