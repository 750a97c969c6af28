"""What the mm libraries see of attnzoo, and the heads that need none of them.

Importing this package changes outside of it what follows, and nothing else:

- `sys.meta_path` gets one more finder, the last, with the stand-in for `mmcv._ext`, mmcv's compiled operators; one that
  is installed comes before it.
- Registries of mmengine get a child of the scope `attnzoo` each, in which the names that the folders export stand for
  configs of every mm library.
- `mmengine.runner.CheckpointLoader` reads files and links by attnzoo's reader of checkpoints, which runs no code.
- In modules of mmdet that were imported before, mmcv's operators are what mmdet could not import.

No other code imports an mm library: neither `import attnzoo` nor its backbones and kernels. In an mmdet config:

    _base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"
    custom_imports = dict(imports=["attnzoo.heads"])
    backbone = dict(type="attnzoo.Backbone", model_name="biformer_tiny", stage_norms="layernorm2d")
    neck = dict(in_channels=[64, 128, 256, 512])
    model = dict(backbone=dict(_delete_=True, **backbone), neck=neck)

`Backbone(...).channels` gives the numbers for `in_channels`.

What is registered is exported by the folder of its task (`bev`, `detection`, `mm`, `restoration`, `segmentation`),
whose `__init__` imports and names it, and with that by this package.

Where a compiled mmcv is installed its operators are left alone, but for those that `use_operators` names.

`attnzoo.heads.probing` works without the mm libraries: where one is missing, this package and its folders can be
imported, and each name that they export raises an ImportError that says what to install.
"""

import warnings
from importlib.util import find_spec

# First, as it serves mmcv's operators, which the others import.
from . import mm

# isort: split
from . import bev, detection, restoration, segmentation
from .libraries import MESSAGE, MISSING, absent

__all__ = [*mm.__all__, *bev.__all__, *detection.__all__, *restoration.__all__, *segmentation.__all__]

if MISSING is None:
    # What `__all__` of each folder names.
    from .bev import *  # noqa: F403
    from .detection import *  # noqa: F403
    from .mm import *  # noqa: F403
    from .restoration import *  # noqa: F403
    from .segmentation import *  # noqa: F403
else:
    if find_spec("mmengine"):
        # A config would only hear from mmengine that there is no attnzoo.Backbone.
        warnings.warn(MESSAGE, stacklevel=2)
    __getattr__ = absent(__name__, __all__)
