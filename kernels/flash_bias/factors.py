"""Factors of a bias, for `flash_bias_attention`."""

import torch

from .._checks import check_integer, check_tensors


def bias_factors(bias: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best factors of a rank, each head's for itself: by singular values, split evenly between both.

    Which rank does is to be seen in results, not by the energy alone: of a smooth bias of 49 pixels' windows, 99.5 % of
    the energy still moved outputs by a tenth of their magnitude, and 99.99 % by a hundredth. Random tables have full
    rank; trained ones are smoother. FlashBias keeps 99.5 %, and takes factors only where that needs a rank of 16 at
    most.

    Args:
        bias: (..., N, M), such as (heads, N, M); float32 at least in the decomposition.
        rank: 1 to min(N, M).

    Returns:
        Factors (..., N, rank) and (..., M, rank) in the dtype of `bias`, and the energy that they keep, (...,): the
        share of the squared singular values.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, or no integer.
        ValueError: for a bias that is no matrix, or a rank that it does not have.
    """
    check_tensors(("bias",), (bias,))
    check_integer("rank", rank)
    if bias.dim() < 2 or not 1 <= rank <= min(bias.shape[-2:]):
        raise ValueError(f"rank must be 1 to the smaller side of bias, got {rank} for {tuple(bias.shape)}")
    left, values, right = torch.linalg.svd(bias.to(torch.promote_types(bias.dtype, torch.float32)), full_matrices=False)
    root, squares = values[..., None, :rank].sqrt(), values.square()
    # A bias of nothing is kept whole.
    energy = torch.nan_to_num(squares[..., :rank].sum(-1) / squares.sum(-1), nan=1.0)
    query, key = left[..., :rank] * root, right.transpose(-2, -1)[..., :rank] * root
    return query.to(bias.dtype), key.to(bias.dtype), energy
