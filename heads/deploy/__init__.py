"""Traceable forms of mm's detectors and segmentors and of the BEV detector: tensors in, tensors of fixed rank out.

`predict` of the mm libraries walks over images, filters by masks and keeps Python objects, which no tracer follows. The
modules here call the same backbone, neck, head convolutions, priors and box coders, and do the rest (choice of
candidates, decoding, suppression, pooling of regions) in tensor operations whose shapes depend on the batch, height and
width alone. They reach for torchvision's operators directly, because mmcv's are autograd functions.

    traceable = deploy(model)          # a copy of `model`, in evaluation mode
    boxes, scores, labels = traceable(images)

Images are float32 (B, 3, H, W) with values 0 to 255, their channels as the model's data preprocessor leaves them: RGB
where it is told `bgr_to_rgb=True`. Normalisation and padding happen inside, and all results are in pixels of the image
that was given. A BEV detector takes images (B, cameras, 3, H, W), calibration, motion and history, and its results are
in metres: see `bev_detector`.

Another kind of model is a subclass of `base.TraceableModel` in a file of its own, and an entry of `FORMS`.
"""

import copy

from torch import nn

from .base import TraceableModel
from .bev_detector import TraceableBEVDetector
from .dense_detector import TraceableDenseDetector
from .replacements import make_traceable
from .segmentor import TraceableSegmentor
from .support import UnsupportedModelError
from .two_stage_detector import TraceableTwoStageDetector

__all__ = ["FORMS", "UnsupportedModelError", "deploy"]

FORMS: tuple[type[TraceableModel], ...] = (
    TraceableDenseDetector,
    TraceableTwoStageDetector,
    TraceableBEVDetector,
    TraceableSegmentor,
)


def deploy(model: nn.Module) -> TraceableModel:
    """The traceable form of a model.

    Args:
        model: A detector of mmdet, a segmentor of mmseg or a `BEVDetector`, with its data preprocessor. It is copied,
            not changed.

    Returns:
        A module in evaluation mode that takes the tensors that its `inputs` names, images (B, 3, H, W) alone but for
        `BEVDetector`, and returns those that its `outputs` names.

    Raises:
        UnsupportedModelError: The model, or a part of it, has no traceable form; the message names it, and what has.
    """
    form = next((form for form in FORMS if isinstance(model, form.serves)), None)
    if form is None:
        supported = ", ".join(form.description for form in FORMS)
        raise UnsupportedModelError(f"model {type(model).__name__} has no traceable form; allowed: {supported}")
    return form(make_traceable(copy.deepcopy(model).eval()).requires_grad_(False)).eval()
