"""Heads and necks of detectors that mmdet lacks."""

from ..libraries import MISSING, absent

__all__ = ["DyHead", "SimpleFeaturePyramid"]

if MISSING is None:
    from .dyhead import DyHead
    from .simple_fpn import SimpleFeaturePyramid
else:
    __getattr__ = absent(__name__, __all__)
