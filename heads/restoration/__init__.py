"""Super-resolution with mmengine's Runner: model, data and metrics.

    default_scope = "mmengine"
    custom_imports = dict(imports=["attnzoo.heads"])
    model = dict(type="attnzoo.Restorer", model_name="hat_small_x4")

See `configs/hat` for whole recipes. The weights of a run (the averaged ones, with EMAHook) as a file that
`timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=...))` takes:

    restorer = Restorer("hat_small_x4")
    restorer.load_checkpoint("work_dirs/hat-small_x4_250k_df2k/iter_250000.pth")
    torch.save(restorer.model.state_dict(), "hat_small_x4.pth")
"""

from ..libraries import MISSING, absent

__all__ = [
    "PSNR",
    "SSIM",
    "LoadImagePair",
    "PackImagePair",
    "PairedImageDataset",
    "PairedRandomCrop",
    "RestorationPreprocessor",
    "Restorer",
]

if MISSING is None:
    from .dataset import PairedImageDataset
    from .metrics import PSNR, SSIM
    from .resize import imresize as imresize
    from .restorer import RestorationPreprocessor, Restorer
    from .transforms import LoadImagePair, PackImagePair, PairedRandomCrop
else:
    __getattr__ = absent(__name__, __all__)
