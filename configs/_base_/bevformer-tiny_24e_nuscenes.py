# BEVFormer-tiny without its backbone, 24 epochs (https://arxiv.org/abs/2203.17270): images of 800 x 450, one level,
# 50 x 50 cells, 2 frames of history. Source: fundamentalvision/BEVFormer, projects/configs/bevformer.
_base_ = "bevformer-base_24e_nuscenes.py"

resize = dict(type="attnzoo.ResizeMultiViewImages", scale=0.5)
train_pipeline = [*_base_.train_pipeline[:2], resize, *_base_.train_pipeline[2:]]
test_pipeline = [_base_.test_pipeline[0], resize, *_base_.test_pipeline[1:]]

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    neck=dict(num_outs=1),
    bev_encoder=dict(rows=50, columns=50, num_layers=3, num_levels=1),
)
train_dataloader = dict(dataset=dict(history=2, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
