"""Bird's-eye view from several cameras: 3-D detection and segmentation of the ground, with history.

A model is a `BEVDetector` of a backbone, a neck, a `BEVEncoder` and heads; BEVFormer with images lifted as planes
(`lifting="2d"`) or spread over depth (`lifting="dfa3d"`, with a `BEVDepthHead` or a `PointDepth`). `nuscenes` has data
and metrics.
"""

from ..libraries import MISSING, absent
from . import nuscenes

__all__ = [
    "BEVDataPreprocessor",
    "BEVDepthHead",
    "BEVDetectionHead",
    "BEVDetector",
    "BEVEncoder",
    "BEVSegmentationHead",
    "PointDepth",
    *nuscenes.__all__,
]

if MISSING is None:
    from .bev_encoder import BEVEncoder
    from .depth_head import BEVDepthHead, PointDepth
    from .detection_head import BEVDetectionHead
    from .detector import BEVDetector

    # What `__all__` of the folder names.
    from .nuscenes import *  # noqa: F403
    from .preprocessor import BEVDataPreprocessor
    from .segmentation_head import BEVSegmentationHead
else:
    __getattr__ = absent(__name__, __all__)
