"""What the conversion of published checkpoints shares between families."""

import torch
from torch import nn


def trunk_of(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """Takes a published file's wrapping off.

    Args:
        state_dict: as published; may stand below a key `model`, `state_dict` or `params`.

    Returns:
        The backbone's tensors without `module.` and `backbone.` prefixes, and whether they came from a detector or
        segmentor, whose backbone has no classifier.
    """
    for key in ("state_dict", "model", "params"):
        inner = state_dict.get(key)
        if isinstance(inner, dict):
            state_dict = inner
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    trunk = {key.removeprefix("backbone."): value for key, value in state_dict.items() if key.startswith("backbone.")}
    return (trunk, True) if trunk else (state_dict, False)


def keep_classifier(
    state_dict: dict[str, torch.Tensor], model: nn.Module, prefixes: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """Fills what dense-prediction code deletes (classifier, final norm) from the model: the rest then loads strictly.

    Args:
        state_dict: in the model's own key names.
        model: about to be loaded.
        prefixes: of the keys that dense-prediction checkpoints lack.

    Returns:
        `state_dict` with the model's own values for the keys under `prefixes` that it lacks.
    """
    kept = {k: v for k, v in model.state_dict().items() if k.startswith(prefixes) and k not in state_dict}
    return {**state_dict, **kept}
