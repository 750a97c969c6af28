"""What the mm libraries see of attnzoo.

Importing this package installs the stand-in for mmcv's compiled operators (where none are installed) and registers
`attnzoo.Backbone`, `attnzoo.LightHamHead` and `attnzoo.LayerDecayOptimWrapperConstructor` for configs of every mm
library. In an mmdet config:

    _base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"
    custom_imports = dict(imports=["attnzoo.heads"])
    backbone = dict(type="attnzoo.Backbone", model_name="biformer_tiny", stage_norms="layernorm2d")
    neck = dict(in_channels=[64, 128, 256, 512])
    model = dict(backbone=dict(_delete_=True, **backbone), neck=neck)

`Backbone(...).channels` gives the numbers for `in_channels`.
"""

import sys

try:
    from .ops import install

    install()

    # Imported without compiled operators, this module of mmdet puts a function that raises in place of roi_align.
    masks = sys.modules.get("mmdet.structures.mask.structures")
    if masks is not None:
        from mmcv.ops.roi_align import roi_align

        masks.roi_align = roi_align  # type: ignore[attr-defined]

    from .backbone import Backbone
    from .layer_decay import LayerDecayOptimWrapperConstructor
    from .light_ham import LightHamHead
except ImportError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in ("mmengine", "mmcv", "mmdet", "mmseg"):
        raise
    raise ImportError(f"attnzoo.heads needs {missing}: pip install 'attnzoo[mm]'", name=error.name) from error

__all__ = ["Backbone", "LayerDecayOptimWrapperConstructor", "LightHamHead"]
