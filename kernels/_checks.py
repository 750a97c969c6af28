"""Checks of arguments that the operators share: one error each, which says what was expected and what came.

Unlike those of models and configs (`backbones.contract.arguments`) they let the symbols of a graph pass as numbers, and
refuse what the schema of an operator cannot hold: NumPy's numbers, and integers of more than 32 bits.
"""

from typing import Any

import torch

from .tracing import leaves_sizes_free

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# Of values that kernels take as 32-bit integers.
LARGEST = 2**31 - 1


def check_tensors(
    names: tuple[str, ...],
    tensors: tuple[torch.Tensor | None, ...],
    optional: tuple[str, ...] = (),
    one_dtype: bool = True,
) -> None:
    """All must be dense tensors of floating-point numbers on one device.

    Args:
        names: of the arguments, for errors.
        tensors: by these names.
        optional: names of those that may be None.
        one_dtype: whether all must have the dtype of the first.

    Raises:
        TypeError: for what is no tensor, and for tensors of integers, booleans, complex numbers and the like.
        ValueError: for layouts such as sparse ones, and where devices or dtypes differ.
    """
    first, first_name = None, ""
    for name, x in zip(names, tensors, strict=True):
        if x is None and name in optional:
            continue
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got layout {x.layout}")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {x.dtype}")
        if first is None:
            first, first_name = x, name
        elif x.device != first.device:
            raise ValueError(f"{name} must be on {first.device} as {first_name} is, got {x.device}")
        elif one_dtype and x.dtype != first.dtype:
            raise ValueError(f"{name} must be {first.dtype} as {first_name} is, got {x.dtype}")


def check_integer(name: str, value: int) -> None:
    """Raises TypeError for anything but an integer, ValueError for large ones; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, got {said(value)}")
    if not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name} must be between -{LARGEST} and {LARGEST}, got {said(value)}")


def check_pair(name: str, value: tuple[int, int]) -> None:
    """Raises TypeError for anything but two integers."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be two integers, got {said(value)}")
    for side in value:
        check_integer(name, side)


def both(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """One integer for both of two, or two; raises TypeError for anything else."""
    if not isinstance(value, (tuple, list)):
        check_integer(name, value)
        return value, value
    check_pair(name, value)
    return value[0], value[1]


def check_number(name: str, value: float) -> None:
    """Raises TypeError for what is no number; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise TypeError(f"{name} must be a number, got {said(value)}")


def check_scale(scale: float | None) -> None:
    """Raises TypeError for what is no number, ValueError for what is not finite; None stands for the default."""
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"scale must be a number, got {said(scale)}")
    if isinstance(scale, int) and not -LARGEST <= scale <= LARGEST:
        raise ValueError(f"scale must be between -{LARGEST} and {LARGEST} as an integer, got {said(scale)}")
    # In this form it asks nothing of a number that a graph leaves free.
    if scale - scale != 0:
        raise ValueError(f"scale must be finite, got {scale}")


def said(value: Any) -> str:
    """A value in a few words, for an error."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    words = repr(value)
    return words if len(words) <= 40 else f"{words[:40]}..."


def check_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> None:
    """What the attention operators ask of maps and heads, whatever their windows.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, or no number of heads.
        ValueError: where shapes, dtypes, devices or heads do not fit each other.
    """
    if not torch.jit.is_scripting():
        check_tensors(("q", "k", "v"), (q, k, v))
        check_integer("num_heads", num_heads)
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"q, k and v must be (B, H, W, C) alike, got {shape(q)}, {shape(k)} and {shape(v)}")
    if num_heads < 1 or q.shape[3] < 1 or q.shape[3] % num_heads != 0:
        raise ValueError(f"num_heads must divide C = {q.shape[3]}, got {num_heads}")


def check_packed(qkv: torch.Tensor, num_heads: int) -> None:
    """`check_heads` of q, k and v one after the other in the channels of one map, (B, H, W, 3 * C)."""
    if not torch.jit.is_scripting():
        check_tensors(("qkv",), (qkv,))
        check_integer("num_heads", num_heads)
    if qkv.dim() != 4 or qkv.shape[3] % 3 != 0:
        raise ValueError(f"qkv must be (B, H, W, 3 * C), got {shape(qkv)}")
    channels = qkv.shape[3] // 3
    if num_heads < 1 or channels < 1 or channels % num_heads != 0:
        raise ValueError(f"num_heads must divide C = {channels}, a third of the channels of qkv, got {num_heads}")


def check_tokens(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """What the operators on tokens, (B, heads, N, D), ask of them.

    Raises:
        TypeError: for what is no tensor of floating-point numbers.
        ValueError: where shapes, dtypes or devices do not fit each other.
    """
    check_tensors(("q", "k", "v"), (q, k, v))
    if any(x.dim() != 4 for x in (q, k, v)):
        raise ValueError(f"q, k and v must be (B, heads, N, D), got {shape(q)}, {shape(k)} and {shape(v)}")
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        wanted = "(B, heads, N, D), (B, heads, M, D) and (B, heads, M, E)"
        raise ValueError(f"q, k and v must be {wanted}, got {shape(q)}, {shape(k)} and {shape(v)}")
    free = leaves_sizes_free()
    if 0 in (q.shape[1], q.shape[3], v.shape[3]) or (not free and 0 in (q.shape[2], k.shape[2])):
        raise ValueError(f"q, k and v must have a head, a token and a channel at least, got {shape(q)} and {shape(v)}")


def shape(x: torch.Tensor) -> str:
    """The shape of a tensor, for an error."""
    sides = [str(side) for side in x.shape]
    return "(" + ", ".join(sides) + ("," if len(sides) == 1 else "") + ")"


def default_scale(q: torch.Tensor, num_heads: int) -> float:
    """Of the dot products of heads of a map (B, H, W, C)."""
    return float(q.shape[3] // num_heads) ** -0.5
