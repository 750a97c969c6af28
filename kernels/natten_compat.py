"""NATTEN's functions of two dimensions on attnzoo's operators: for code that was written for NATTEN.

NATTEN (https://github.com/SHI-Labs/NATTEN) must be compiled against one version of PyTorch, and since 0.20 it has
neither the relative bias of the published NAT and DiNAT models nor the functions by which they and transformers'
`Dinat` compute it. Here both stand, on every device, forward and backward, for maps of any size:

| of NATTEN | names |
| --- | --- |
| 0.14, 0.15 | `natten2dqkrpb`, `natten2dqk`, `natten2dav`, `NeighborhoodAttention2D` |
| 0.15 to 0.17 | `na2d_qk`, `na2d_qk_with_bias`, `na2d_av` |
| 0.17 | `na2d`; further arguments of 0.20 and later, such as `stride`, by their names |

`na2d` and `NeighborhoodAttention2D` are fused: `attnzoo.kernels.neighborhood_attention`, in Triton where that is
chosen, or `generalized_neighborhood_attention` for strides, causal axes and windows that are not square. The others
are halves of it in plain PyTorch. What is of one or three dimensions raises NotImplementedError.

`install` lets code import these as `natten`, unchanged:

    from attnzoo.kernels import natten_compat
    natten_compat.install()
    from transformers import DinatModel, DinatConfig
    model = DinatModel(DinatConfig())

That serves transformers 4.30 to 4.53, tried. Later ones, up to 5.24 at least, hand NATTEN maps whose heads stand behind
the map, which no NATTEN takes: the bias does not fit them, and an error says so.
"""

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from . import _checks, _dispatch
from ._natten_finder import Finder
from .neighborhood_attention import generalized_neighborhood_attention, neighborhood_attention
from .neighborhood_attention.split import Windows, scores, sums

__all__ = [
    "NeighborhoodAttention2D",
    "has_fna",
    "has_fused_na",
    "install",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na2d_qk_with_bias",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "use_fna",
    "use_fused_na",
]

# The last one with the relative bias; a local version, as it is not NATTEN's own.
VERSION = "0.17.5+attnzoo"

Sides = int | Sequence[int]
Causal = bool | Sequence[bool] | None

# What chooses among NATTEN's kernels and changes no result.
_TUNING = (
    "attention_kwargs",
    "backend",
    "backward_kv_splits",
    "backward_kv_tile_shape",
    "backward_q_tile_shape",
    "backward_use_pt_reduction",
    "kernel_schedule",
    "kv_tile_shape",
    "q_tile_shape",
    "run_persistent_kernel",
    "torch_compile",
)


def natten2dqkrpb(
    query: torch.Tensor, key: torch.Tensor, rpb: torch.Tensor | None, kernel_size: Sides, dilation: Sides
) -> torch.Tensor:
    """Products of each query with the keys of its window, and the relative bias; see `na2d_qk`."""
    return na2d_qk(query, key, kernel_size, dilation, rpb=rpb)


def natten2dqk(query: torch.Tensor, key: torch.Tensor, kernel_size: Sides, dilation: Sides) -> torch.Tensor:
    """`natten2dqkrpb` without a bias."""
    return na2d_qk(query, key, kernel_size, dilation)


def natten2dav(attn: torch.Tensor, value: torch.Tensor, kernel_size: Sides, dilation: Sides) -> torch.Tensor:
    """Sums of the values of each window by weights; see `na2d_av`."""
    return na2d_av(attn, value, kernel_size, dilation)


def na2d_qk(
    query: torch.Tensor,
    key: torch.Tensor,
    kernel_size: Sides,
    dilation: Sides | None = 1,
    additional_keys: torch.Tensor | None = None,
    is_causal: Causal = False,
    rpb: torch.Tensor | None = None,
) -> torch.Tensor:
    """Products of each query with the keys of its window, unscaled: the weights before their softmax.

    The window is that of `generalized_neighborhood_attention` with stride 1. Its memory is the result's; the window of
    no query is gathered. On a GPU, gradients of keys are summed in no fixed order unless
    `torch.use_deterministic_algorithms` asks for one.

    Args:
        query: (B, heads, H, W, D), any strides.
        key: like `query`.
        kernel_size: K, or (K, L) for rows and columns; at least 1, where NATTEN takes odd numbers from 3 alone.
        dilation: likewise; at least 1. NATTEN's maps have K * dilation rows and L * dilation columns at least; in
            smaller ones the windows of some queries lack keys, whose weights are minus infinity.
        additional_keys: (B, heads, N, D), which every query sees too.
        is_causal: likewise. Behind the query there are no keys: minus infinity.
        rpb: (heads, 2 * K - 1, 2 * L - 1), the relative bias: row and column are the key's position minus the query's
            in units of `dilation`, plus K - 1 and L - 1. NATTEN takes none where an axis is causal.

    Returns:
        (B, heads, H, W, K * L + N), dtype of `query`: the window's keys row by row, from its first corner; then the
        additional ones.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer, or neither True nor False.
        ValueError: where shapes, dtypes, devices or sizes do not fit each other.
    """
    query, key, additional_keys = _dispatch.autocast(query, key, additional_keys)
    _check_maps(("query", "key"), (query, key))
    window, apart, causal = _sizes("kernel_size", kernel_size), _sizes("dilation", dilation), _causal(is_causal)
    _check_bias(rpb, query, query.shape[1], window)
    windows = Windows.of(query.shape[2:4], window, (1, 1), apart, causal, query.device)
    out = scores(query, key, rpb, windows)
    if additional_keys is None:
        return out
    _check_additional("additional_keys", additional_keys, query)
    return torch.cat([out, torch.einsum("bhxyd,bhnd->bhxyn", query, additional_keys)], -1)


def na2d_qk_with_bias(
    query: torch.Tensor,
    key: torch.Tensor,
    bias: torch.Tensor | None,
    kernel_size: Sides,
    dilation: Sides,
    additional_keys: torch.Tensor | None = None,
) -> torch.Tensor:
    """`na2d_qk` as NATTEN 0.15 calls it with a relative bias."""
    return na2d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def na2d_av(
    attn: torch.Tensor,
    value: torch.Tensor,
    kernel_size: Sides,
    dilation: Sides | None = 1,
    additional_values: torch.Tensor | None = None,
    is_causal: Causal = False,
) -> torch.Tensor:
    """Sums of the values of each window by weights.

    Args:
        attn: (B, heads, H, W, K * L + N) as of `na2d_qk`, after the softmax; taken in the dtype of `value`.
        value: (B, heads, H, W, D), any strides.
        kernel_size: as of `na2d_qk`.
        dilation: likewise.
        additional_values: (B, heads, N, D).
        is_causal: likewise. Weights of keys that a window lacks do not count.

    Returns:
        (B, heads, H, W, D), dtype of `value`.

    Raises:
        TypeError: as `na2d_qk`.
        ValueError: likewise.
    """
    attn, value, additional_values = _dispatch.autocast(attn, value, additional_values)
    _checks.check_tensors(("attn", "value"), (attn, value), one_dtype=False)
    window, apart, causal = _sizes("kernel_size", kernel_size), _sizes("dilation", dilation), _causal(is_causal)
    _check_maps(("value",), (value,))
    near, more = window[0] * window[1], 0
    if additional_values is not None:
        _check_additional("additional_values", additional_values, value)
        more = additional_values.shape[2]
    if attn.dim() != 5 or attn.shape[:4] != value.shape[:4] or attn.shape[4] != near + more:
        wanted = (*value.shape[:4], near + more)
        raise ValueError(f"attn must be {wanted}, got {_checks.shape(attn)}")
    attn = attn.to(value.dtype)
    windows = Windows.of(value.shape[2:4], window, (1, 1), apart, causal, value.device)
    out = sums(attn[..., :near], value, windows)
    if additional_values is None:
        return out
    return out + torch.einsum("bhxyn,bhnd->bhxyd", attn[..., near:], additional_values)


def na2d(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kernel_size: Sides,
    dilation: Sides | None = 1,
    is_causal: Causal = False,
    rpb: torch.Tensor | None = None,
    scale: float | None = None,
    additional_keys: torch.Tensor | None = None,
    additional_values: torch.Tensor | None = None,
    xformers_kwargs: dict[str, Any] | None = None,
    *,
    stride: Sides = 1,
    return_lse: bool = False,
    **tuning: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Neighborhood attention, fused.

    The order of the arguments is that of NATTEN 0.17. In 0.20 and later `stride` stands before `dilation`: code for
    these must pass both by their names.

    Where there are additional keys, or values of other sizes than the keys, or the log-sum-exp is asked for, the
    weights of all windows are in memory at once.

    Args:
        query: (B, H, W, heads, D); parts of one (B, H, W, 3, heads, D) tensor are not copied.
        key: like `query`.
        value: like `query`; D may be another.
        kernel_size: as of `na2d_qk`.
        dilation: likewise.
        is_causal: likewise.
        rpb: likewise, added to the scaled products. NATTEN takes none where an axis is causal, nor with a stride.
        scale: factor of the products, by default D ** -0.5.
        additional_keys: (B, N, heads, D), which every query sees too.
        additional_values: like `additional_keys`; D as of `value`.
        xformers_kwargs: has no effect here.
        stride: so many neighbouring queries of an axis share a window; see `generalized_neighborhood_attention`.
        return_lse: give the log-sum-exp of the scaled products too.
        **tuning: NATTEN's choice of kernels and their tiles, which has no effect here.

    Returns:
        (B, H, W, heads, D), dtype of `value`; with `return_lse` also (B, H, W, heads), float32 at least.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer, no number, or neither True nor False,
            and for arguments that NATTEN does not have.
        ValueError: where shapes, dtypes, devices or sizes do not fit each other.
    """
    for name in tuning:
        if name not in _TUNING:
            raise TypeError(f"na2d() got an unexpected keyword argument {name!r}")
    if (additional_keys is None) != (additional_values is None):
        raise ValueError("additional_keys and additional_values must be given together")
    window, apart, steps = _sizes("kernel_size", kernel_size), _sizes("dilation", dilation), _sizes("stride", stride)
    causal = _causal(is_causal)
    query, key, value, more_keys, more_values = _dispatch.autocast(
        query, key, value, additional_keys, additional_values
    )
    _check_maps(("query", "key"), (query, key))
    _check_maps(("value",), (value,))
    optional = ("additional_keys", "additional_values")
    _checks.check_tensors(("query", "value", *optional), (query, value, more_keys, more_values), optional)
    if value.shape[:4] != key.shape[:4]:
        raise ValueError(f"value must be {tuple(key.shape[:4])} and D, got {_checks.shape(value)}")
    _check_bias(rpb, query, query.shape[3], window)
    if more_keys is not None or return_lse or value.shape != key.shape:
        return _unfused(query, key, value, window, steps, apart, causal, rpb, scale, more_keys, more_values, return_lse)
    return _fused(query, key, value, window, steps, apart, causal, rpb, scale)


def _fused(query, key, value, window, steps, apart, causal, rpb, scale) -> torch.Tensor:
    """`na2d` by the operator that takes it; maps whose heads and channels are adjacent are not copied."""
    heads, size = query.shape[3], window[0]
    q, k, v = (x.flatten(3) for x in (query, key, value))
    plain = window[0] == window[1] and apart[0] == apart[1] and steps == (1, 1) and not any(causal)
    if plain and 3 <= size <= 15 and size % 2 == 1:
        out = neighborhood_attention(q, k, v, heads, size, apart[0], rpb, scale)
    else:
        out = generalized_neighborhood_attention(q, k, v, heads, window, steps, apart, causal, rpb, scale)
    return out.unflatten(3, (heads, -1))


def _unfused(query, key, value, window, steps, apart, causal, rpb, scale, more_keys, more_values, return_lse):
    """`na2d` by its two halves, as what is asked for has no fused form."""
    _checks.check_scale(scale)
    for size, step in zip(window, steps, strict=True):
        if step > size:
            raise ValueError(f"stride must be 1 to kernel_size {window}, got {steps}")
    # Heads first, and all products and the softmax in float32 at least.
    dtype = torch.promote_types(query.dtype, torch.float32)
    query, key, values = (x.permute(0, 3, 1, 2, 4) for x in (query, key, value))
    query = query.to(dtype) * (query.shape[4] ** -0.5 if scale is None else scale)
    windows = Windows.of(query.shape[2:4], window, steps, apart, causal, query.device)
    logits = scores(query, key, rpb, windows)
    if more_keys is not None:
        more_keys, more_values = more_keys.transpose(1, 2), more_values.transpose(1, 2)
        _check_additional("additional_keys", more_keys, query)
        _check_additional("additional_values", more_values, values)
        logits = torch.cat([logits, torch.einsum("bhxyd,bhnd->bhxyn", query, more_keys.to(dtype))], -1)
    near = window[0] * window[1]
    weights = logits.softmax(-1)
    out = sums(weights[..., :near], values.to(dtype), windows)
    if more_values is not None:
        out = out + torch.einsum("bhxyn,bhnd->bhxyd", weights[..., near:], more_values.to(dtype))
    out = out.permute(0, 2, 3, 1, 4).to(value.dtype)
    return (out, logits.logsumexp(-1).permute(0, 2, 3, 1)) if return_lse else out


class NeighborhoodAttention2D(nn.Module):
    """Projections around neighborhood attention, as NATTEN 0.14 and 0.15 have it: what published NAT and DiNAT use.

    From 0.17 on NATTEN's has no bias unless `rel_pos_bias` asks for one: pass `bias=False` for that.

    Maps smaller than `kernel_size * dilation` are padded at the right and at the bottom with zeros, before the
    projection: their pixels are seen as others are.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        kernel_size: odd, at least 3.
        dilation: at least 1; None stands for 1.
        bias: learn a relative bias, `rpb`.
        qkv_bias: of the projection before.
        qk_scale: factor of the products, by default (dim / num_heads) ** -0.5.
        attn_drop: dropout of weights; in training they are then all in memory at once.
        proj_drop: dropout of the result.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        dilation: int | None = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 3, got {kernel_size}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = qk_scale or self.head_dim**-0.5
        self.kernel_size = kernel_size
        self.dilation = dilation or 1
        self.window_size = self.kernel_size * self.dilation
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1)) if bias else None
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, dim) -> the same."""
        height, width = x.shape[1:3]
        missing = max(self.window_size - height, 0), max(self.window_size - width, 0)
        if any(missing):
            x = F.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
        q, k, v = self.qkv(x).unflatten(3, (3, self.num_heads, self.head_dim)).unbind(3)
        if self.training and self.attn_drop.p > 0:
            q, k, v = (x.permute(0, 3, 1, 2, 4) for x in (q * self.scale, k, v))
            weights = na2d_qk(q, k, self.kernel_size, self.dilation, rpb=self.rpb).softmax(-1)
            out = na2d_av(self.attn_drop(weights), v, self.kernel_size, self.dilation).permute(0, 2, 3, 1, 4)
        else:
            window, apart = (self.kernel_size,) * 2, (self.dilation,) * 2
            out = _fused(q, k, v, window, (1, 1), apart, (False, False), self.rpb, self.scale)
        return self.proj_drop(self.proj(out.flatten(3)[:, :height, :width]))

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return (
            f"head_dim={self.head_dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"dilation={self.dilation}, rel_pos_bias={self.rpb is not None}"
        )


def has_fused_na() -> bool:
    """Whether `na2d` is there, as NATTEN 0.17 answers it."""
    return True


def use_fused_na(mode: bool = True, kv_parallel: bool = True) -> None:
    """Has no effect: `NeighborhoodAttention2D` is fused wherever it can be."""


has_fna, use_fna = has_fused_na, use_fused_na


def _check_maps(names: tuple[str, ...], maps: tuple[torch.Tensor, ...]) -> None:
    """Maps of five dimensions, none of them empty but the batch's, and alike."""
    _checks.check_tensors(names, maps)
    for name, x in zip(names, maps, strict=True):
        if x.dim() != 5 or 0 in x.shape[1:]:
            raise ValueError(f"{name} must have five dimensions, at least 1 but for the batch, got {_checks.shape(x)}")
        if x.shape != maps[0].shape:
            raise ValueError(f"{name} must be {tuple(maps[0].shape)} as {names[0]} is, got {_checks.shape(x)}")


def _check_bias(rpb: torch.Tensor | None, query: torch.Tensor, heads: int, window: tuple[int, int]) -> None:
    _checks.check_tensors(("query", "rpb"), (query, rpb), ("rpb",), one_dtype=False)
    sides = (heads, 2 * window[0] - 1, 2 * window[1] - 1)
    if rpb is not None and tuple(rpb.shape) != sides:
        raise ValueError(f"rpb must be {sides}, got {_checks.shape(rpb)}")


def _check_additional(name: str, x: torch.Tensor, like: torch.Tensor) -> None:
    """Of tensors with the heads before all tokens."""
    _checks.check_tensors(("query", name), (like, x), one_dtype=False)
    sides = *like.shape[:2], like.shape[4]
    if x.dim() != 4 or (*x.shape[:2], x.shape[3]) != sides:
        raise ValueError(f"{name} must be of B, heads and D {sides} and N tokens, got {_checks.shape(x)}")


def _sizes(name: str, value: Sides | None) -> tuple[int, int]:
    """Of rows and columns, by NATTEN's rule: one number is of both, and None is 1."""
    value = 1 if value is None else value
    sides: Any = (value, value) if isinstance(value, int) else value
    _checks.check_pair(name, sides)
    if min(sides) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return sides[0], sides[1]


def _causal(value: Causal) -> tuple[bool, bool]:
    flags = (bool(value),) * 2 if value is None or isinstance(value, bool) else value
    if not isinstance(flags, (tuple, list)) or len(flags) != 2 or not all(isinstance(x, bool) for x in flags):
        raise TypeError(f"is_causal must be True or False, or two of these, got {_checks.said(value)}")
    return flags[0], flags[1]


def install() -> None:
    """Lets `import natten`, `natten.functional` and what looks for them find this module, in this process.

    What looks are `importlib.util.find_spec` and `importlib.metadata.version`, by which transformers asks: `install`
    must come before it has. Serves the names of this module; those of one and three dimensions can be imported and
    raise when they are called; others are ImportErrors. Calling it again changes nothing.

    Raises:
        RuntimeError: where a NATTEN is installed, which this would hide, or where transformers has noted that there is
            none.
    """
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    found = importlib.util.find_spec("natten")
    if found is not None:
        raise RuntimeError(f"natten is installed ({found.origin}): uninstall it to have attnzoo's in its place")
    finder = Finder({name: globals()[name] for name in __all__ if name != "install"}, VERSION)
    sys.meta_path.append(finder)
    transformers = sys.modules.get("transformers")
    if transformers is not None and not transformers.utils.is_natten_available():
        sys.meta_path.remove(finder)
        raise RuntimeError("transformers was imported before and has noted that there is no natten: call install first")
