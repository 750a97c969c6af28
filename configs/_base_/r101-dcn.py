# ResNet-101 with deformable convolutions in its last two stages, as BEVFormer has it from FCOS3D: BGR images, less the
# mean alone. Source: fundamentalvision/BEVFormer, projects/configs/bevformer.
backbone = dict(
    type="mmdet.ResNet",
    depth=101,
    frozen_stages=1,
    norm_cfg=dict(type="BN", requires_grad=False),
    norm_eval=True,
    style="caffe",
    dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
    stage_with_dcn=(False, False, True, True),
)
normalisation = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
