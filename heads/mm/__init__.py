"""The bridge to the mm libraries: adapter, registries, operators in the place of mmcv's, optimizer, augmentation.

Importing it serves mmcv's operators, before anything here or in another folder of heads imports them.
"""

from ..libraries import MISSING, absent

__all__ = ["Albumentations", "Backbone", "LayerDecayOptimWrapperConstructor", "use_operators"]

if MISSING is None:
    from .ops import install, replace_fallbacks

    install()
    replace_fallbacks()

    from .albumentations import Albumentations
    from .backbone import Backbone
    from .layer_decay import LayerDecayOptimWrapperConstructor
    from .ops.replacement import use_operators
else:
    __getattr__ = absent(__name__, __all__)
