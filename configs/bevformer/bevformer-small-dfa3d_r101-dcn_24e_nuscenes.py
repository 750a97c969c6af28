# DFA3D on BEVFormer-small, as published: https://arxiv.org/abs/2307.12972.
_base_ = ["bevformer-small_r101-dcn_24e_nuscenes.py", "../_base_/dfa3d.py"]

train_pipeline = [*_base_.train_pipeline[:-1], _base_.lidar_depth, _base_.train_pipeline[-1]]
model = dict(bev_encoder=dict(lifting="dfa3d"), depth_head=_base_.depth_head)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
