# RTMDet on a pretrained backbone, 100 epochs, as mmdetection trains it on Swin (https://arxiv.org/abs/2212.07784).
_base_ = "mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py"
custom_imports = dict(imports=["attnzoo.heads"], allow_failed_imports=False)

model = dict(
    # Its neck takes multiples of 32 alone; the published pipelines come to 640 anyway.
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(_delete_=True, type="attnzoo.Backbone", out_indices=(1, 2, 3)),
)
# mmdetection's 4 x 32; it leaves the base batch size of another recipe.
train_dataloader = dict(batch_size=16)
auto_scale_lr = dict(base_batch_size=128)
