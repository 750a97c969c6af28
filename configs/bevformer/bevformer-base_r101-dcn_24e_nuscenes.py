# As published: https://github.com/fundamentalvision/BEVFormer. It starts from the weights of FCOS3D that are linked
# there: --cfg-options load_from=r101_dcn_fcos3d_pretrain.pth
_base_ = ["../_base_/bevformer-base_24e_nuscenes.py", "../_base_/r101-dcn.py"]

model = dict(
    data_preprocessor=_base_.normalisation,
    backbone=dict(out_indices=(1, 2, 3), **_base_.backbone),
    neck=dict(in_channels=[512, 1024, 2048]),
)
