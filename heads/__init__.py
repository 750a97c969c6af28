"""What the mm libraries see of attnzoo, and the heads that need none of them.

Importing this package changes outside of it what follows, and nothing else:

- `sys.meta_path` gets one more finder, the last, with the stand-in for `mmcv._ext`, mmcv's compiled operators; one that
  is installed comes before it.
- Registries of mmengine get a child of the scope `attnzoo` each, in which the names below stand for configs of every mm
  library.
- `mmengine.runner.CheckpointLoader` reads files and links by attnzoo's reader of checkpoints, which runs no code.
- In modules of mmdet that were imported before, mmcv's operators are what mmdet could not import.

No other code imports an mm library: neither `import attnzoo` nor its backbones and kernels. In an mmdet config:

    _base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"
    custom_imports = dict(imports=["attnzoo.heads"])
    backbone = dict(type="attnzoo.Backbone", model_name="biformer_tiny", stage_norms="layernorm2d")
    neck = dict(in_channels=[64, 128, 256, 512])
    model = dict(backbone=dict(_delete_=True, **backbone), neck=neck)

`Backbone(...).channels` gives the numbers for `in_channels`.

`attnzoo.heads.probing` works without the mm libraries: where one is missing, this package can be imported, and each of
the names below raises an ImportError that says what to install.
"""

import warnings
from importlib.util import find_spec
from typing import NoReturn

_missing = next((name for name in ("mmengine", "mmcv", "mmdet", "mmseg") if find_spec(name) is None), None)

if _missing is None:
    from .mm.ops import install, replace_fallbacks

    install()

    replace_fallbacks()

    from .detection.dyhead import DyHead
    from .detection.simple_fpn import SimpleFeaturePyramid
    from .mm.albumentations import Albumentations
    from .mm.backbone import Backbone
    from .mm.layer_decay import LayerDecayOptimWrapperConstructor
    from .restoration import PSNR, SSIM, LoadImagePair, PackImagePair, PairedImageDataset, PairedRandomCrop, Restorer
    from .segmentation.light_ham import LightHamHead
    from .segmentation.mca_head import MCAHead
else:
    _message = f"attnzoo.heads needs {_missing}: pip install 'attnzoo[mm]'"
    if find_spec("mmengine"):
        # A config would only hear from mmengine that there is no attnzoo.Backbone.
        warnings.warn(_message, stacklevel=2)

    def __getattr__(name: str) -> NoReturn:
        if name in __all__:
            raise ImportError(_message, name=_missing)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "PSNR",
    "SSIM",
    "Albumentations",
    "Backbone",
    "DyHead",
    "LayerDecayOptimWrapperConstructor",
    "LightHamHead",
    "LoadImagePair",
    "MCAHead",
    "PackImagePair",
    "PairedImageDataset",
    "PairedRandomCrop",
    "Restorer",
    "SimpleFeaturePyramid",
]
