"""Decode heads of segmentors that mmseg lacks."""

from ..libraries import MISSING, absent

__all__ = ["LightHamHead", "MCAHead"]

if MISSING is None:
    from .light_ham import LightHamHead
    from .mca_head import MCAHead
else:
    __getattr__ = absent(__name__, __all__)
