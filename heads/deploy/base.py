"""What the traceable forms have in common."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from .preprocessing import Preprocess


class TraceableModel(nn.Module):
    """Base of the traceable forms, each of which serves one kind of model.

    A form maps images (B, 3, H, W), values 0 to 255, and what else its inputs name, to tensors whose shapes depend on
    the batch, height and width alone.

    Args:
        model: A model of the kind in evaluation mode, whose modules `replacements.make_traceable` has replaced.

    Attributes:
        serves: The class of mm from whose instances it is made.
        description: Of the models that it serves, in the plural, for the error that names all of them.
        inputs: Names of the tensors that it takes, in their order, each with names of the axes that may have any size.
        outputs: Names of the tensors that it returns, in their order.
        cameras: How many images of each sample stand in an axis of their own; None where a sample is one image.
        carried: Of inputs that are an output of the call before the name of that output.

    Raises:
        UnsupportedModelError: The model has a part without a traceable form.
    """

    serves: type[nn.Module]
    description: str
    inputs: Mapping[str, dict[int, str]] = MappingProxyType({"images": {0: "batch", 2: "height", 3: "width"}})
    outputs: tuple[str, ...]
    cameras: int | None = None
    carried: Mapping[str, str] = MappingProxyType({})
    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.preprocess = Preprocess(model.data_preprocessor)
        self.model = model

    def metadata(self) -> dict[str, object]:
        """What a user of the exported file must know of this model beside channels and classes, as JSON has it."""
        return {}
