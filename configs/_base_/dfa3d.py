# What DFA3D (https://arxiv.org/abs/2307.12972) adds to BEVFormer: bins of half a metre from 2 to 58 m, of which a code
# of 24 numbers tells (8 of 1 m, 8 of 2 m, 8 of 4 m), from the map of stride 32, and LiDAR points to learn it from.
depth_head = dict(
    type="attnzoo.BEVDepthHead",
    in_channels=256,
    mid_channels=256,
    bins=dict(near=2.0, far=58.0, step=0.5, groups=(2, 4, 8)),
    level=0,
    stride=32,
    loss_weight=0.5,
)
lidar_depth = dict(type="attnzoo.LoadLidarDepth")
