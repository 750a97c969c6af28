"""Layer-wise decay of the learning rate, for any timm backbone."""

from fnmatch import fnmatchcase

from mmengine.optim import DefaultOptimWrapperConstructor
from timm.models import group_parameters
from torch import nn

from ...backbones.contract.arguments import is_number, is_within
from .backbone import Backbone
from .registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Parameter groups whose learning rate shrinks towards the input of each `attnzoo.Backbone`.

    A parameter in layer `i` of a backbone of `n` layers, both counted by the timm model's `group_matcher()`, gets
    `lr * layer_decay ** (n - i)`: the deepest layer one factor of `layer_decay`, the stem `n`. All else (neck, heads,
    the backbone's stage norms) learns at `lr`. Biases and vectors (norms, layer scale) of the whole model and what the
    timm model lists in `no_weight_decay()` get no weight decay. Frozen parameters are left out, shared ones are taken
    once. The rule is BEiT's (https://arxiv.org/abs/2106.08254).

    Args:
        optim_wrapper_cfg: mmengine's; its optimizer must give `lr`.
        paramwise_cfg: `dict(layer_decay=…)` with a factor in (0, 1], and nothing else.

    Raises:
        ValueError: `paramwise_cfg` is something else, the optimizer has no `lr`, or the model no `attnzoo.Backbone`.

    Example:
        In a config:

            optim_wrapper = dict(
                constructor="attnzoo.LayerDecayOptimWrapperConstructor",
                paramwise_cfg=dict(layer_decay=0.9),
                optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
            )
    """

    def _validate_cfg(self) -> None:
        decay = self.paramwise_cfg.get("layer_decay")
        valid = is_number(decay) and is_within(decay, above=0, most=1)
        if set(self.paramwise_cfg) != {"layer_decay"} or not valid:
            raise ValueError(
                f"paramwise_cfg={self.paramwise_cfg}: allowed is dict(layer_decay=x) with 0 < x <= 1 and no other key "
                "(_delete_=True drops those of a base config)"
            )
        if self.base_lr is None:
            raise ValueError(f"optimizer={self.optimizer_cfg}: layer-wise decay needs its lr")

    def add_params(self, params: list[dict], module: nn.Module, **_: object) -> None:
        """Append one group for each pair of learning rate and weight decay in `module` to `params`."""
        scales: dict[str, float] = {}
        no_decay: set[str] = set()
        for prefix, backbone in module.named_modules():
            if not isinstance(backbone, Backbone):
                continue
            prefix = f"{prefix}.model." if prefix else "model."
            layers = group_parameters(backbone.model, backbone.model.group_matcher(coarse=False), reverse=True)
            depth = max(layers.values()) + 1
            for name, layer in layers.items():
                scales[prefix + name] = self.paramwise_cfg["layer_decay"] ** (depth - layer)
            patterns = backbone.model.no_weight_decay() if hasattr(backbone.model, "no_weight_decay") else ()
            no_decay.update(prefix + name for name in layers if any(fnmatchcase(name, p) for p in patterns))
        if not scales:
            raise ValueError("LayerDecayOptimWrapperConstructor: the model has no attnzoo.Backbone with parameters")

        groups: dict[tuple[float, bool], dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = scales.get(name, 1.0)
            undecayed = parameter.ndim <= 1 or name.endswith(".bias") or name in no_decay
            if (scale, undecayed) not in groups:
                groups[scale, undecayed] = {"params": [], "lr": self.base_lr * scale}
                if undecayed:
                    groups[scale, undecayed]["weight_decay"] = 0.0
            groups[scale, undecayed]["params"].append(parameter)
        params.extend(groups.values())
