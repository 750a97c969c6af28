# BEVFormer-small without its backbone, 24 epochs (https://arxiv.org/abs/2203.17270): images of 1280 x 720, one level,
# 150 x 150 cells, 2 frames of history. Source: fundamentalvision/BEVFormer, projects/configs/bevformer.
_base_ = "bevformer-base_24e_nuscenes.py"

resize = dict(type="attnzoo.ResizeMultiViewImages", scale=0.8)
train_pipeline = [*_base_.train_pipeline[:2], resize, *_base_.train_pipeline[2:]]
test_pipeline = [_base_.test_pipeline[0], resize, *_base_.test_pipeline[1:]]

model = dict(neck=dict(num_outs=1), bev_encoder=dict(rows=150, columns=150, num_layers=3, num_levels=1))
train_dataloader = dict(dataset=dict(history=2, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
