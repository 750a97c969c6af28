"""Checks of arguments: each raises one ValueError that names the argument, its value and what is allowed.

timm's models have this one error for all that is wrong with an argument. `heads.arguments` tells wrong types from wrong
values, as the mm libraries do, and asks the same questions (`is_integer`, `is_number`, `is_within`). `kernels._checks`
is for operators, whose arguments may be symbols of a graph.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

__all__ = [
    "check_body",
    "check_divisible",
    "check_flags",
    "check_integers",
    "check_numbers",
    "check_pool",
    "check_rates",
    "check_sides",
    "check_stages",
    "flags_of",
    "is_integer",
    "is_number",
    "is_within",
]

# Poolings of timm's classifier head.
POOLS = ("", "avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax")


def check_integers(least: int = 1, odd: bool = False, tuples: bool = False, **values: Any) -> None:
    """Raises unless each value is an integer that is large enough.

    Args:
        least: that is allowed.
        odd: whether even ones are refused.
        tuples: the values are sequences of integers.
        **values: by the names of their arguments.
    """
    kind = f"{'odd ' if odd else ''}integers of at least {least}"
    for name, value in values.items():
        for entry in _entries(value) if tuples else [value]:
            if not is_integer(entry) or entry < least or (odd and entry % 2 == 0):
                raise ValueError(f"{name}={value!r}: {kind} are needed")


def check_sides(**values: Any) -> None:
    """Raises unless each value is an integer of at least 1, or one for the height and one for the width."""
    for name, value in values.items():
        pair = isinstance(value, Sequence) and not isinstance(value, str)
        if pair and len(value) != 2:
            raise ValueError(f"{name}={value!r}: one integer or two are needed")
        check_integers(tuples=pair, **{name: value})


def check_numbers(
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    tuples: bool = False,
    **values: Any,
) -> None:
    """Raises unless each value is a finite number within the limits.

    Args:
        least: that is allowed.
        above: what the value must exceed.
        most: that is allowed.
        tuples: the values are sequences of numbers.
        **values: by the names of their arguments.
    """
    limits = {"at least": least, "above": above, "at most": most}
    kind = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if limit is not None)
    for name, value in values.items():
        for entry in _entries(value) if tuples else [value]:
            if not is_number(entry) or not is_within(entry, least, above, most):
                raise ValueError(f"{name}={value!r}: a finite number{' ' + kind if kind else ''} is needed")


def check_rates(**values: Any) -> None:
    """Raises unless each value is the probability of dropping something: at least 0 and below 1."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{name}={value!r}: a number of at least 0 and below 1 is needed")


def check_flags(**values: Any) -> dict[str, bool]:
    """The values as True and False; raises unless each is one of them, or 1 or 0, or NumPy's."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_) and not (is_integer(value) and value in (0, 1)):
            raise ValueError(f"{name}={value!r}: True or False is needed")
    return {name: bool(value) for name, value in values.items()}


def flags_of(make: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that are for arguments whose default is True or False.

    Args:
        make: a function, or a class whose constructor may pass arguments on to those that it inherits.
        values: by the names of their arguments.
    """
    makers = [vars(kind).get("__init__") for kind in make.__mro__] if isinstance(make, type) else [make]
    parameters = [p for maker in makers if maker for p in inspect.signature(maker).parameters.values()]
    return {p.name: values[p.name] for p in parameters if isinstance(p.default, bool) and p.name in values}


def check_stages(**values: Any) -> None:
    """Raises unless the values are sequences with one entry a stage, for one stage at least."""
    for name, value in values.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"{name}={value!r}: a tuple with one entry a stage is needed")
    lengths = [len(value) for value in values.values()]
    if len(set(lengths)) > 1 or 0 in lengths:
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise ValueError(f"{given}: one entry a stage is needed, as many in each")


def check_divisible(of: str, by: str, **values: Any) -> None:
    """Raises unless one argument is a multiple of another, entry by entry where both are sequences.

    Args:
        of: name of the argument that is divided.
        by: name of the one that divides it; what both say has been checked to be positive integers.
        **values: both, by their names.
    """
    sizes, parts = _entries(values[of]), _entries(values[by])
    count = max(len(sizes), len(parts))
    sizes, parts = (entries * count if len(entries) == 1 else entries for entries in (sizes, parts))
    if any(size % part for size, part in zip(sizes, parts, strict=True)):
        raise ValueError(f"{of}={values[of]!r}: multiples of {by}={values[by]!r} are needed")


def check_pool(global_pool: Any, allowed: tuple[str, ...] = POOLS) -> None:
    """Raises unless the pooling is one of those allowed."""
    if global_pool not in allowed:
        raise ValueError(f"global_pool={global_pool!r}: one of {', '.join(map(repr, allowed))} is needed")


def check_body(
    depths: Any,
    embed_dims: Any,
    in_chans: Any,
    num_classes: Any,
    global_pool: Any,
    drop_rate: Any,
    proj_drop_rate: Any,
    drop_path_rate: Any,
    mlp_ratio: Any = None,
    mlp_ratios: Any = None,
    **per_stage: Any,
) -> None:
    """Checks what the bodies of all families have in common.

    Args:
        depths: blocks of each stage.
        embed_dims: channels of each stage.
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: pooling before the classifier.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout behind projections.
        drop_path_rate: stochastic depth.
        mlp_ratio: hidden over outer channels of the MLPs of all stages.
        mlp_ratios: the same of each stage, instead.
        **per_stage: more tuples with one entry a stage; of these `num_heads` divide `embed_dims`.

    Raises:
        ValueError: for the first that is not allowed.
    """
    if mlp_ratios is not None or mlp_ratio is None:
        per_stage["mlp_ratios"] = mlp_ratios
    check_stages(depths=depths, embed_dims=embed_dims, **per_stage)
    check_integers(tuples=True, depths=depths, embed_dims=embed_dims)
    check_integers(in_chans=in_chans)
    check_integers(least=0, num_classes=num_classes)
    if "mlp_ratios" in per_stage:
        check_numbers(above=0, tuples=True, mlp_ratios=mlp_ratios)
    else:
        check_numbers(above=0, mlp_ratio=mlp_ratio)
    ratios = per_stage.get("mlp_ratios", [mlp_ratio] * len(depths))
    if any(int(dim * ratio) < 1 for dim, ratio in zip(embed_dims, ratios, strict=True)):
        given = f"mlp_ratios={mlp_ratios!r}" if "mlp_ratios" in per_stage else f"mlp_ratio={mlp_ratio!r}"
        raise ValueError(f"{given}: hidden channels are needed at embed_dims={embed_dims!r}")
    if "num_heads" in per_stage:
        num_heads = per_stage["num_heads"]
        check_integers(tuples=True, num_heads=num_heads)
        check_divisible("embed_dims", "num_heads", embed_dims=embed_dims, num_heads=num_heads)
    check_pool(global_pool)
    check_rates(drop_rate=drop_rate, proj_drop_rate=proj_drop_rate, drop_path_rate=drop_path_rate)


def is_integer(value: Any) -> bool:
    """Whether it is an integer, of Python or another library; True and False are not meant as one."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python or another library; True and False are not meant as one."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_within(value: Any, least: float | None = None, above: float | None = None, most: float | None = None) -> bool:
    """Whether a number is finite, as a float, and keeps to the limits that are given; see `check_numbers`."""
    try:
        number = float(value)
    except OverflowError:  # of an integer
        return False
    return (
        # Not by `math.isfinite`, which `torch.compile` does not trace.
        -math.inf < number < math.inf
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
    )


def _entries(value: Any) -> list[Any]:
    """The value itself, or what a sequence holds."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
