# As published: https://github.com/SHI-Labs/Neighborhood-Attention-Transformer. Windows of 11; the published weights
# start from ImageNet-22k. 200 queries.
_base_ = "../_base_/mask2former_50e_coco.py"

# Like the rest of the backbone a tenth of the learning rate, but no weight decay.
norm = dict(lr_mult=0.1, decay_mult=0.0)
norms = {"backbone.model.stem.2": norm, "backbone.extra_norms": norm}
norms.update({f"backbone.model.stages.{stage}.downsample.1": norm for stage in range(1, 4)})
norms.update(
    {
        f"backbone.model.stages.{stage}.blocks.{block}.norm": norm
        for stage, depth in enumerate((3, 4, 18, 5))
        for block in range(depth)
    }
)

model = dict(
    backbone=dict(
        model_name="dinat_large_384_11x11",
        drop_path_rate=0.3,
        dilations=((1, 14), (1, 4, 1, 7), (1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 3), (1,)),
        stage_norms=dict(type="layernorm2d", eps=1e-5),
    ),
    panoptic_head=dict(in_channels=[192, 384, 768, 1536], num_queries=200),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=norms))
train_cfg = dict(max_iters=737500, dynamic_intervals=[(735001, 737500)])
param_scheduler = [
    dict(type="MultiStepLR", begin=0, end=737500, by_epoch=False, milestones=[655556, 710184], gamma=0.1)
]
