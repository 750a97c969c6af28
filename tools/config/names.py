"""Names in a config that are almost those that are read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..common.errors import UserError, warn
from .classes import is_checkpoint_hook
from .fields import value_at

# Their class, where they name none, is the loop of epochs or of iterations, of validation or of the test.
_LOOPS = ("train_cfg", "val_cfg", "test_cfg")
# Dicts that are read by name, so that another name is passed over in silence.
_NAMES = {
    "env_cfg": ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"),
    "default_hooks": ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"),
    "optim_wrapper.paramwise_cfg": (
        "custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult", "dwconv_decay_mult",
        "dcn_offset_lr_mult", "bypass_duplicate", "layer_decay", "decay_rate", "decay_type", "num_layers",
    ),
    "optim_wrapper.clip_grad": ("type", "max_norm", "norm_type", "error_if_nonfinite", "foreach", "clip_value"),
    "auto_scale_lr": ("enable", "base_batch_size"),
}  # fmt: skip
# The same of each entry of `custom_keys`, where others become options of the optimizer.
_CUSTOM = ("lr_mult", "decay_mult", "lr", "weight_decay", "momentum", "betas", "eps")
# What the models of mmdet and mmseg read from `train_cfg` and `test_cfg`, of the whole and of parts such as `rpn`.
_OF_HEADS = (
    "allowed_border", "alpha", "assigner", "augments", "beta", "beta_topk", "carl", "center_ratio", "chunked_size",
    "cls_pseudo_thr", "conf_thr", "corner_topk", "crop_size", "debug", "distance_threshold", "dynamic_rcnn",
    "extract_feat_on", "filter_low_score", "filter_thr", "forward_on", "freeze_teacher", "ga_assigner", "ga_sampler",
    "ignore_ratio", "importance_sample_ratio", "init", "initial_assigner", "initial_beta", "initial_epoch",
    "initial_iou", "instance_on", "iou_thr", "iou_threshold", "iou_topk", "isr", "jitter_scale", "jitter_times",
    "kernel", "local_maximum_kernel", "mask_overlap", "mask_size", "mask_thr", "mask_thr_binary", "max_num",
    "max_num_grid", "max_per_image", "max_per_img", "min_bbox_size", "min_pseudo_bbox_wh", "mode", "neg_pos_ratio",
    "nms", "nms_across_levels", "nms_cfg", "nms_post", "nms_pre", "nms_thr", "num_points", "object_mask_thr",
    "oversample_ratio", "panoptic", "panoptic_on", "perm_range", "perm_repeat_gt_cfg", "pos_radius", "pos_weight",
    "predict_on", "pseudo_label_initial_score_thr", "rcnn", "refine", "reg_assigner", "reg_pseudo_thr", "rpn",
    "rpn_proposal", "rpn_pseudo_thr", "sampler", "scale_factor", "score_thr", "score_voting", "semantic_on", "sigma",
    "size_divisor", "smoothl1_beta", "stride", "stuff_area_limit", "subdivision_num_points", "subdivision_steps",
    "sup_weight", "top_k", "topk", "type", "unsup_weight", "update_iter_interval",
)  # fmt: skip
# At any depth of models and data sets.
_NESTED = {
    "train_cfg": _OF_HEADS,
    "test_cfg": _OF_HEADS,
    "filter_cfg": ("filter_empty_gt", "min_size", "bbox_min_size"),
}


def check_names(cfg: Any) -> None:
    """Refuse names that are almost those that are read, as a misspelt one would leave the default in force unsaid.

    Other unknown names are variables of the config's own, and pass; so do names that begin with an underscore. At the
    top of a config those pass, too, that its text uses, and names with a number or a letter behind. What is handed on
    to a function that takes nothing else has no others.

    Raises:
        UserError: naming the field and what it is close to.
    """
    # The libraries read no `data_root` there: it is a variable, and so are names like it.
    top = _top() - {"data_root"}
    for name in cfg:
        if not _is_variable(cfg, name, top):
            _check_name(cfg.filename, "", name, top)
    for field, part, known in _parts(cfg):
        for name in filter(lambda name: isinstance(name, str), part):
            _check_name(cfg.filename, f"{field}.", name, known)
    checkpoint = value_at(cfg, "default_hooks.checkpoint") or {}
    if is_checkpoint_hook(checkpoint.get("type")):
        _check_closed(cfg, "default_hooks.checkpoint", {*_parameters("CheckpointHook", None), "type", "priority"})
    _check_closed(cfg, "optim_wrapper.clip_grad", _NAMES["optim_wrapper.clip_grad"])


def _parts(cfg: Any) -> Iterator[tuple[str, Any, Iterable[str]]]:
    """The dicts that are read by name: field, value, and the names."""
    for field, names in _NAMES.items():
        yield field, value_at(cfg, field) or (), names
    keys = value_at(cfg, "optim_wrapper.paramwise_cfg.custom_keys")
    for key, value in keys.items() if isinstance(keys, Mapping) else ():
        if isinstance(value, Mapping):
            yield f"optim_wrapper.paramwise_cfg.custom_keys[{key!r}]", value, _CUSTOM
    for field in ("model", *(f"{mode}_dataloader.dataset" for mode in ("train", "val", "test"))):
        yield from _nested(field, value_at(cfg, field), None)


def _nested(field: str, value: Any, names: Iterable[str] | None) -> Iterator[tuple[str, Any, Iterable[str]]]:
    """Those of `_NESTED` in a value, and what is in them but for what has a class, which knows its names itself."""
    if isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _nested(f"{field}[{index}]", part, names)
    elif isinstance(value, Mapping):
        names = None if "type" in value else names
        if names is not None:
            yield field, value, names
        for key, part in value.items():
            yield from _nested(f"{field}.{key}", part, _NESTED.get(key, names))


def _check_closed(cfg: Any, field: str, known: Iterable[str]) -> None:
    unknown = [name for name in value_at(cfg, field) or () if name not in known and not str(name).startswith("_")]
    if unknown:
        near = misspelt(str(unknown[0]), known)
        hint = f"did you mean {near}?" if near else f"allowed are {', '.join(sorted(known))}"
        raise UserError(f"{cfg.filename}: {field}.{unknown[0]} is not taken by anything; {hint}")


def _check_name(filename: str, place: str, name: str, known: Iterable[str]) -> None:
    near = misspelt(name, known)
    if near:
        raise UserError(
            f"{filename}: {place}{name} is not read by anything; did you mean {place}{near}? A variable of your own "
            "needs a name that is less like it"
        )


def _is_variable(cfg: Any, name: str, known: Iterable[str]) -> bool:
    """Whether a name at the top of a config is one of several of a kind, such as `model_2`, or used in its text."""
    numbered = re.fullmatch(r"(\w+?)(_?\d+|_[a-z]|(?<=model)s)", name)
    if numbered and numbered[1] in known:
        return True
    # Where no `=` of an assignment or `:` of YAML follows.
    return re.search(rf"\b{re.escape(name)}\b(?!['\"]?\s*(=(?!=)|:))", cfg.text) is not None


def _top() -> set[str]:
    """The names at the top of a config that are read."""
    from mmengine.runner import FlexibleRunner, Runner

    known = {"custom_imports", "model_wrapper_cfg", "find_unused_parameters", "data_root", "tta_model", "sync_bn"}
    known |= {"activation_checkpointing", "compile", "efficient_conv_bn_eval", "tta_pipeline"}
    for runner in (Runner, FlexibleRunner):
        known |= inspect.signature(runner.__init__).parameters.keys()
    return known - {"self", "cfg"}


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that differs from `name` by a letter or two, if `name` is none of them."""
    names = set(known)
    if name in names or name.startswith("_"):
        return None
    near = ((_distance(name, one), one) for one in sorted(names) if len(one) > 3 and abs(len(name) - len(one)) <= 2)
    near = ((far, one) for far, one in near if far <= (2 if len(one) >= 9 else 1) and _same_words(name, one))
    return min(near, default=(0, None))[1]


def _same_words(name: str, other: str) -> bool:
    """Whether no short word of a name is another one: two letters make `ema` of `tta`."""
    pairs = list(zip(name.split("_"), other.split("_"), strict=False))
    apart = name.count("_") != other.count("_")
    return apart or all(_distance(*pair) <= 1 or max(map(len, pair)) > 4 for pair in pairs)


def _distance(one: str, other: str) -> int:
    """How many letters to change, leave out, add or swap with their neighbour."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def check_options(cfg: Any, options: Mapping[str, Any]) -> None:
    """Check that what `--cfg-options` adds to a config is not a misspelt name of what is there or could be.

    Of other new keys a warning tells, unless a class takes or refuses them when it is built: mmengine lets any be set.

    Args:
        cfg: The config before the options.
        options: Values by dotted keys.

    Raises:
        UserError: naming the key and what it is close to.
    """
    for key in options:
        place: list[str] = []
        parent: Any = cfg
        for name in key.split("."):
            inner = _entry(parent, name)
            if inner is None and not place and name not in cfg and (near := misspelt(name, _top())):
                raise UserError(f"--cfg-options: {name} is not in the config; did you mean {near}?")
            if place and inner is None and isinstance(parent, Mapping) and name not in parent:
                taken = _parameters(parent.get("type"), cfg.get("default_scope"))
                near = misspelt(name, {*parent, *taken, *_NAMES.get(".".join(place), ())})
                if near:
                    where = ".".join(place)
                    raise UserError(f"--cfg-options: {where}.{name} is not in the config; did you mean {where}.{near}?")
            if _is_idle(parent, place, name):
                elsewhere = [f"{part}.{name}" for part in _LOOPS if name in (cfg.get(part) or ())]
                hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
                warn(f"--cfg-options: the config has no {'.'.join((*place, name))}: perhaps nothing reads it{hint}")
                break
            place.append(name)
            parent = inner


def _is_idle(parent: Any, place: Sequence[str], name: str) -> bool:
    """Whether a name is new at the top of a config, in a variable of its own, or in what is read by name alone."""
    if not (isinstance(parent, Mapping) or hasattr(parent, "filename")) or name in parent or name.startswith("_"):
        return False
    if not place:
        return name not in _top()
    if "type" in parent:
        return False
    if place[0] not in _top():
        return True
    known = _read_by_name(place)
    return known is not None and name not in known


def _read_by_name(place: Sequence[str]) -> Iterable[str] | None:
    """The names that are read from a part of a config, None where a class or a function takes or refuses all of it."""
    inner = [name for name in place[1:] if name in _NESTED]
    if inner:
        return _NESTED[inner[-1]]
    # Hooks have names of the user's own choice.
    return None if place[0] == "default_hooks" else _NAMES.get(".".join(place))


def _entry(parent: Any, name: str) -> Any:
    if isinstance(parent, (list, tuple)) and name.isdecimal():
        return parent[int(name)] if int(name) < len(parent) else None
    return parent.get(name) if isinstance(parent, Mapping) or hasattr(parent, "filename") else None


def _parameters(kind: Any, scope: str | None) -> set[str]:
    """The names that the class of a `type` takes, and those that its bases take where it hands on; none if unknown."""
    found = kind if isinstance(kind, type) else _registered(kind, scope) if isinstance(kind, str) else None
    names: set[str] = set()
    for base in getattr(found, "__mro__", ()):
        if "__init__" not in vars(base) or base is object:
            continue
        taken = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= {one.name for one in taken if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind is one.VAR_KEYWORD for one in taken):
            break
    return names - {"self"}


def _registered(name: str, scope: str | None) -> type | None:
    """The class of this name in all registries, seen from a library, if they agree."""
    from mmengine import registry

    found = set()
    for one in vars(registry).values():
        if isinstance(one, registry.Registry):
            found.add(one.children.get(scope, one).get(name))
    found -= {None}
    return found.pop() if len(found) == 1 else None
