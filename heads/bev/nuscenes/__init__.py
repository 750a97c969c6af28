"""nuScenes in its public layout: tables, geometry, LiDAR points, data set, and the detection metric.

It needs neither nuscenes-devkit nor mmdet3d. `tables` has the reader, `evaluation` and `submission` the metric and the
official file of results:

    from attnzoo.heads.bev.nuscenes.evaluation import evaluate
    from attnzoo.heads.bev.nuscenes.submission import read_submission
    from attnzoo.heads.bev.nuscenes.tables import NuScenes

    nusc = NuScenes("data/nuscenes", "v1.0-trainval")
    print(evaluate(nusc, read_submission("results_nusc.json"), nusc.samples("val")).summary())
"""

from ...libraries import MISSING, absent

__all__ = [
    "BEVMapMetric",
    "BoxRangeFilter",
    "DrawBEVMap",
    "LoadLidarDepth",
    "LoadMultiViewImages",
    "MultiViewPhotoMetricDistortion",
    "NuScenesDataset",
    "NuScenesMetric",
    "PackBEVInputs",
    "ResizeMultiViewImages",
    "SceneSampler",
]

if MISSING is None:
    from .dataset import NuScenesDataset
    from .map_metric import BEVMapMetric
    from .metric import NuScenesMetric
    from .sampler import SceneSampler
    from .transforms import (
        BoxRangeFilter,
        DrawBEVMap,
        LoadLidarDepth,
        LoadMultiViewImages,
        MultiViewPhotoMetricDistortion,
        PackBEVInputs,
        ResizeMultiViewImages,
    )
else:
    __getattr__ = absent(__name__, __all__)
