# DFA3D (https://arxiv.org/abs/2307.12972) on BEVFormer-tiny; no recipe is published for this size.
_base_ = ["bevformer-tiny_resnet50_24e_nuscenes.py", "../_base_/dfa3d.py"]

train_pipeline = [*_base_.train_pipeline[:-1], _base_.lidar_depth, _base_.train_pipeline[-1]]
model = dict(bev_encoder=dict(lifting="dfa3d"), depth_head=_base_.depth_head)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
