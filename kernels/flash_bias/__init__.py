"""Attention with a bias of low rank, which fused attention computes as a few channels more of queries and keys."""

import torch

from .. import _checks, _derivatives, _dispatch
from ..tracing import leaves_sizes_free, untraced
from .cpu import attend

__all__ = ["flash_bias_attention"]


def flash_bias_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_factor: torch.Tensor,
    key_factor: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention whose bias is the product of two thin matrices, `query_factor @ key_factor.T`, without that product.

    `softmax(scale * q @ k.T + query_factor @ key_factor.T) @ v`, computed as attention of queries and keys to which the
    factors are appended: no matrix of N x M is made where PyTorch's `scaled_dot_product_attention` is fused, nor a bias
    read. It is exact for the factors' product; what a bias of higher rank loses is `factors.bias_factors`' to say.

    In plain PyTorch. The products of q and `scale`, and the factors, are rounded to the dtype of q.

    Source: Wu et al., FlashBias: Fast Computation of Attention with Bias, https://arxiv.org/abs/2505.12044, equation 3.

    Args:
        q: (B, heads, N, D), floating point, any strides; B may be 0.
        k: (B, heads, M, D).
        v: (B, heads, M, E).
        query_factor: (heads, N, R), or (B, heads, N, R); B and heads may be 1 for all alike. The D + R channels are
            filled up to a multiple of 8 by zeros.
        key_factor: (heads, M, R), or (B, heads, M, R), likewise.
        scale: factor of the dot products, finite, by default D ** -0.5.

    Returns:
        (B, heads, N, E), dtype of `q`; under autocast q, k and v are taken in its dtype first.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, or no number.
        ValueError: where shapes, dtypes or devices do not fit each other.
    """
    q, k, v = _dispatch.autocast(q, k, v)
    untraced(_check, q, k, v, query_factor, key_factor, scale)
    if scale is None:
        scale = untraced(_default_scale, q)
    if not leaves_sizes_free() and q.numel() == 0:
        return _derivatives.nothing((*q.shape[:3], v.shape[3]), q, k, v, query_factor, key_factor)
    return attend(q, k, v, query_factor, key_factor, scale)


def _default_scale(q: torch.Tensor) -> float:
    return float(q.shape[3]) ** -0.5


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_factor: torch.Tensor,
    key_factor: torch.Tensor,
    scale: float | None,
) -> None:
    _checks.check_tokens(q, k, v)
    _checks.check_scale(scale)
    _checks.check_tensors(
        ("q", "query_factor", "key_factor"),
        (q, query_factor, key_factor),
        ("query_factor", "key_factor"),
        one_dtype=False,
    )
    for name, factor, tokens in (("query_factor", query_factor, q), ("key_factor", key_factor, k)):
        if factor is None:
            raise TypeError(f"{name} must be a tensor, got NoneType")
        sides = factor.shape if factor.dim() == 4 else (1, *factor.shape)
        heads, count = q.shape[1], tokens.shape[2]
        fits = len(sides) == 4 and sides[0] in (1, q.shape[0]) and sides[1] in (1, heads)
        if not fits or sides[2] != count or sides[3] != query_factor.shape[-1]:
            wanted = f"({heads} or 1, {count}, R={query_factor.shape[-1]})"
            raise ValueError(f"{name} must be {wanted}, or one for each of the batch, got {_checks.shape(factor)}")
