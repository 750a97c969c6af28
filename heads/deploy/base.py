"""What the traceable forms have in common."""

from typing import Any

from torch import nn

from .preprocessing import Preprocess


class TraceableModel(nn.Module):
    """Base of the traceable forms, each of which serves one kind of model.

    A form maps images (B, 3, H, W), values 0 to 255, to tensors whose shapes depend on the batch, height and width
    alone.

    Args:
        model: A model of the kind in evaluation mode, whose modules `replacements.make_traceable` has replaced.

    Attributes:
        serves: The class of mm from whose instances it is made.
        description: Of the models that it serves, in the plural, for the error that names all of them.
        outputs: Names of the tensors that it returns, in their order.

    Raises:
        UnsupportedModelError: The model has a part without a traceable form.
    """

    serves: type[nn.Module]
    description: str
    outputs: tuple[str, ...]
    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.preprocess = Preprocess(model.data_preprocessor)
        self.model = model
