# As published: https://github.com/fundamentalvision/BEVFormer. Its backbone starts from ImageNet's weights:
# --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=torchvision://resnet50
_base_ = "../_base_/bevformer-tiny_24e_nuscenes.py"

model = dict(
    backbone=dict(
        type="mmdet.ResNet",
        depth=50,
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    ),
    neck=dict(in_channels=[2048]),
)
