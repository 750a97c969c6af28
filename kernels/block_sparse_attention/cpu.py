"""Attention over kept blocks: of each block of queries alone on the CPU, by a mask elsewhere."""

import torch
from torch._subclasses import FakeTensor

from .. import _derivatives
from ..tracing import leaves_sizes_free


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_map: torch.Tensor,
    block_size: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """Attention over the kept blocks of keys, (B, heads, N, E); arguments as of `block_sparse_attention`."""
    # A graph serves other choices than its example's.
    in_graph = torch.compiler.is_compiling() or leaves_sizes_free() or isinstance(q, FakeTensor)
    if q.device.type == "cpu" and not in_graph and not _derivatives.is_transformed():
        return _attend_blocks(q, k, v, block_map, block_size, scale)
    seen = block_map.repeat_interleave(block_size[0], 2)[:, :, : q.shape[2]]
    seen = seen.repeat_interleave(block_size[1], 3)[..., : k.shape[2]]
    # Autograd forbids to change in place what comes from there.
    return _derivatives.attend(q, k, v, seen, scale).clone()


def _attend_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_map: torch.Tensor,
    block_size: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """Copies the kept keys and values of one block of queries at a time."""
    of_block = torch.arange(k.shape[2]) // block_size[1]
    heads = []
    for sample, kept_of_sample in enumerate(block_map):
        for head, kept_of_head in enumerate(kept_of_sample):
            query, key, value = (x[sample, head][None, None] for x in (q, k, v))
            parts = []
            for block, kept in zip(query.split(block_size[0], 2), kept_of_head, strict=True):
                places = kept[of_block].nonzero()[:, 0]
                near = key.index_select(2, places), value.index_select(2, places)
                parts.append(_derivatives.attend(block, *near, None, scale))
            heads.append(torch.cat(parts, 2)[0, 0])
    return torch.stack(heads).unflatten(0, q.shape[:2])
