"""Agent attention on the bodies of DeiT, PVT, Swin and CSwin.

Agent Attention: On the Integration of Softmax and Linear Attention, https://arxiv.org/abs/2312.08874,
https://github.com/LeapLabTHU/Agent-Attention (no licence at its root; MIT by the headers of its Swin and CSwin parts).

A few agents, pooled from the queries, attend to all tokens; then all tokens attend to the agents: the cost is linear in
the tokens. Both softmaxes have learned biases, tables of the map at `img_size`.

Any image size is taken as the published dense-prediction code (PVT, Swin) takes it: the parts of a bias are resized
bilinearly to the map, and where there are other agents than the weights were trained with, along the grid of agents
too. The published dense recipes use the classification weights with more agents: `agent_grids=(12, 16, 28, 28)` for PVT
and `(9, 12, 14, 7)` for Swin (7 for 14 where that stage has no agents). Dense PVT returns the stages' maps as they are,
dense Swin a LayerNorm of each (the mm adapter's `stage_norms`) while the un-normed map goes on. DeiT and CSwin have no
published dense code: the same rule serves them.

The published spatial reduction and attention dropout of agent blocks, which no published model uses, are left out. The
queries' projection is one with that of keys and values on every body.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, to_2tuple
from timm.models import generate_default_cfgs
from torch import nn

from .bodies.attention import softmax_attention
from .bodies.cswin import CSwinTransformer
from .bodies.deit import CFG, FEATURES, DeiT
from .bodies.exchange import convert_exchanged, leading_blocks
from .bodies.layers import DepthwiseConv, channels_last, resize_map, sizes_stay_free
from .bodies.pvt import PyramidVisionTransformer
from .bodies.swin import SwinTransformer
from .contract.arguments import check_integers, check_sides, check_stages
from .contract.facts import Check, Facts, Variant
from .contract.registration import imagenet_cfg, register

__all__ = ["AgentCSwin", "AgentDeiT", "AgentPVT", "AgentSwin"]


@register_notrace_function
def pool_agents(x: torch.Tensor, height: int, width: int, rows: int, cols: int) -> torch.Tensor:
    """Adaptive average pooling of tokens; (B, height * width, C) -> (B, rows * cols, C)."""
    x = x.unflatten(1, [height, width]).permute(0, 3, 1, 2)
    free = sizes_stay_free()
    if free:
        # Products with matrices of averages: ONNX has no adaptive pooling, its decomposition binds it to one size.
        x = F.linear(x.transpose(2, 3), _averages(height, rows, x)).transpose(2, 3)
        x = F.linear(x, _averages(width, cols, x))
    else:
        x = F.adaptive_avg_pool2d(x, (rows, cols))
    return x.flatten(2).transpose(1, 2)


def _averages(size: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """(bins, size): the weights of each entry in each bin of adaptive average pooling."""
    i = torch.arange(bins, device=like.device).unsqueeze(1)
    start, end = i * size // bins, ((i + 1) * size + bins - 1) // bins
    j = torch.arange(size, device=like.device)
    return ((j >= start) & (j < end)).to(like.dtype) / (end - start)


@register_notrace_function
def agent_bias(
    cells: torch.Tensor,
    lines: torch.Tensor,
    columns: torch.Tensor,
    side: int,
    rows: int,
    cols: int,
    height: int,
    width: int,
    agents_last: bool,
) -> torch.Tensor:
    """The sum of a bias's three tables for a map and a grid of agents.

    Resizing is linear along each axis by itself, so it is done where the tables are small: agents before pixels, rows
    and columns before their sum. The published code sums rows and columns first.

    Args:
        cells: (heads, side * side, h, w), a coarse grid.
        lines: (heads, side * side, H, 1).
        columns: (heads, side * side, 1, W).
        side: of the grid of agents in the tables.
        rows: of the grid of agents.
        cols: of the grid of agents.
        height: of the map.
        width: of the map.
        agents_last: the order of the result.

    Returns:
        (heads, rows * cols, height * width), or (heads, height * width, rows * cols) with `agents_last`.
    """
    grid = resize_agents(cells, side, rows, cols)
    bias = resize_map(channels_last(grid) if agents_last else grid.contiguous(), height, width)
    bias = bias + resize_map(resize_agents(lines, side, rows, cols), height, 1)
    bias = bias + resize_map(resize_agents(columns, side, rows, cols), 1, width)
    return bias.permute(0, 2, 3, 1).flatten(1, 2) if agents_last else bias.flatten(2)


def resize_agents(table: torch.Tensor, side: int, rows: int, cols: int) -> torch.Tensor:
    """(heads, side * side, h, w) -> (heads, rows * cols, h, w)."""
    if rows == side and cols == side:
        return table
    heads, h, w = table.shape[0], table.shape[2], table.shape[3]
    grid = table.permute(0, 2, 3, 1).reshape(heads, h * w, side, side)
    return resize_map(grid, rows, cols).view(heads, h, w, rows * cols).permute(0, 3, 1, 2)


class AgentAttention(nn.Module):
    """Agent attention plus a depth-wise convolution of v (equation 6 of the paper).

    Args:
        dim: channels.
        num_heads: divides `dim`.
        grid: height and width of the map that the biases' tables belong to.
        num_agents: of the tables; a square.
        agent_grid: rows and columns of agents; None for the square grid of `num_agents`.
        class_token: a class token stands in front, attends and is attended to, but is not pooled and not convolved.
        proj_drop: dropout behind the output projection.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        num_agents: int,
        agent_grid: tuple[int, int],
        class_token: bool = False,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.side = math.isqrt(num_agents)
        self.agent_grid = agent_grid
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = DepthwiseConv(dim, 3, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        # Names as published: a agents, n map, h rows, w columns, c class token; the softmax runs over the second.
        self.an_bias = _table(num_heads, num_agents, 7, 7, **dd)
        self.na_bias = _table(num_heads, num_agents, 7, 7, **dd)
        self.ah_bias = _table(num_heads, num_agents, grid[0], 1, **dd)
        self.aw_bias = _table(num_heads, num_agents, 1, grid[1], **dd)
        self.ha_bias = _table(num_heads, grid[0], 1, num_agents, **dd)
        self.wa_bias = _table(num_heads, 1, grid[1], num_agents, **dd)
        self.ac_bias = _table(num_heads, num_agents, 1, **dd) if class_token else None
        self.ca_bias = _table(num_heads, 1, num_agents, **dd) if class_token else None

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(B, height * width, C), the class token in front if there is one -> the same."""
        side, (rows, cols) = self.side, self.agent_grid
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        lines, columns = self.ha_bias.permute(0, 3, 1, 2), self.wa_bias.permute(0, 3, 1, 2)
        to_map = agent_bias(self.an_bias, self.ah_bias, self.aw_bias, side, rows, cols, height, width, False)
        to_agents = agent_bias(self.na_bias, lines, columns, side, rows, cols, height, width, True)
        tokens, values = q, v
        if self.ac_bias is not None and self.ca_bias is not None:
            tokens, values = q[:, 1:], v[:, 1:]
            to_token = resize_agents(self.ac_bias.unsqueeze(3), side, rows, cols).squeeze(3)
            from_token = resize_agents(self.ca_bias.transpose(1, 2).unsqueeze(3), side, rows, cols).squeeze(3)
            to_map = torch.cat((to_token, to_map), 2)
            to_agents = torch.cat((from_token.transpose(1, 2), to_agents), 1)
        agents = self._heads(pool_agents(tokens, height, width, rows, cols))
        gathered = attend(agents, self._heads(k), self._heads(v), to_map)
        x = attend(self._heads(q), agents, gathered, to_agents).transpose(1, 2).flatten(2)
        local = self.lepe(values.unflatten(1, [height, width])).flatten(1, 2)
        if self.ac_bias is not None:
            local = F.pad(local, [0, 0, 1, 0])
        return self.proj_drop(self.proj(x + local))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(-1, [self.num_heads, -1]).transpose(1, 2)


def _table(*shape: int, device=None, dtype=None) -> nn.Parameter:
    table = nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
    nn.init.trunc_normal_(table, std=0.02)
    return table


@register_notrace_function
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Softmax attention with a bias that the batch shares; (B, heads, N, D), bias (heads, N, M)."""
    return softmax_attention(q, k, v, bias.to(q.dtype).unsqueeze(0))


def _agents(
    num_agents: tuple[int, ...],
    agent_grids: tuple[int | tuple[int, int], ...] | None,
    agent_blocks: tuple[int | None, ...],
    depths: tuple[int, ...],
) -> Callable[[int, int], Callable[..., nn.Module] | None]:
    """Which attention a body's block has: agent attention in the first `agent_blocks` of its stage, else the body's."""
    check_stages(depths=depths, num_agents=num_agents, agent_blocks=agent_blocks)
    check_integers(tuples=True, num_agents=num_agents)
    if any(math.isqrt(n) ** 2 != n for n in num_agents):
        raise ValueError(f"num_agents={num_agents!r}: squares are needed")
    grids = [math.isqrt(n) for n in num_agents] if agent_grids is None else agent_grids
    check_stages(depths=depths, agent_grids=grids)
    for grid in grids:
        check_sides(agent_grids=grid)
    layers = [
        partial(AgentAttention, num_agents=agents, agent_grid=tuple(to_2tuple(grid)))
        for agents, grid in zip(num_agents, grids, strict=True)
    ]
    return leading_blocks("agent_blocks", agent_blocks, depths, lambda stage: layers[stage])


class AgentDeiT(DeiT):
    """DeiT with agent attention.

    Args:
        num_agents: that the weights have; a square.
        agent_grid: side, or rows and columns, of the grid of agents; None for that of `num_agents`.
        agent_blocks: leading blocks with agent attention, the others with softmax attention; None for all.
        kwargs: of the body.

    Raises:
        ValueError: where the body raises it, or `num_agents` or `agent_grid` is not as said.
    """

    def __init__(
        self,
        num_agents: int = 49,
        agent_grid: int | tuple[int, int] | None = None,
        agent_blocks: int | None = None,
        **kwargs: Any,
    ):
        grids = None if agent_grid is None else (agent_grid,)
        super().__init__(attention=_agents((num_agents,), grids, (agent_blocks,), (1,)), **kwargs)


class AgentPyramid(nn.Module):
    """Before a body with stages: agent attention in its leading blocks.

    Args:
        depths: blocks of each stage.
        agent_blocks: of each stage the leading blocks with agent attention, the others with the body's own; None for
            all.
        num_agents: that each stage's weights have; squares.
        agent_grids: side, or rows and columns, of each stage's grid of agents; None for those of `num_agents`.
        kwargs: of the body.

    Raises:
        ValueError: where the body raises it, or `num_agents`, `agent_grids` or `agent_blocks` are not as said.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        agent_blocks: tuple[int | None, ...],
        num_agents: tuple[int, ...] = (9, 16, 49, 49),
        agent_grids: tuple[int | tuple[int, int], ...] | None = None,
        **kwargs: Any,
    ):
        super().__init__(depths=depths, attention=_agents(num_agents, agent_grids, agent_blocks, depths), **kwargs)


class AgentPVT(AgentPyramid, PyramidVisionTransformer):
    """PVT with agent attention."""

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        *,
        agent_blocks: tuple[int | None, ...] = (None, None, None, None),
        **kwargs: Any,
    ):
        super().__init__(depths, agent_blocks, **kwargs)


class AgentSwin(AgentPyramid, SwinTransformer):
    """Swin with agent attention, over the whole map and never shifted."""

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        *,
        agent_blocks: tuple[int | None, ...] = (None, None, None, 0),
        **kwargs: Any,
    ):
        super().__init__(depths, agent_blocks, **kwargs)


class AgentCSwin(AgentPyramid, CSwinTransformer):
    """CSwin with agent attention, over the whole map."""

    def __init__(
        self,
        depths: tuple[int, ...] = (2, 4, 18, 1),
        *,
        agent_blocks: tuple[int | None, ...] = (None, None, 0, 0),
        **kwargs: Any,
    ):
        super().__init__(depths, agent_blocks, **kwargs)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Renames a published checkpoint (classifier, detector or segmentor) to our keys; returns ours untouched."""

    def without_front(key: str, value: torch.Tensor) -> torch.Tensor:
        # The published tables have an axis of one entry in front.
        return value.squeeze(0) if re.search(r"\.(ah|aw|ha|wa|ac|ca)_bias$", key) else value

    lines = ("ah_bias", "aw_bias", "ha_bias", "wa_bias")
    return convert_exchanged(state_dict, model, ".lepe.", [(r"\.dwc\.", ".lepe.")], lines, without_front)


_cfg = partial(
    imagenet_cfg,
    crop_pct=0.9,
    first_conv="stem.proj",
    license="other",
    origin_url="https://github.com/LeapLabTHU/Agent-Attention",
    paper_name="Agent Attention: On the Integration of Softmax and Linear Attention",
    paper_ids="arXiv:2312.08874",
    notes=("The repository has no licence at its root.",),
)
_deit_cfg = partial(_cfg, **CFG)
_swin_cfg = partial(_cfg, first_conv="stem.0")

default_cfgs = generate_default_cfgs(
    {
        "agent_deit_tiny.in1k": _deit_cfg(74.9),
        "agent_deit_small.in1k": _deit_cfg(80.5),
        "agent_deit_base.in1k": _deit_cfg(),
        "agent_pvt_tiny.in1k": _cfg(78.4),
        "agent_pvt_small.in1k": _cfg(82.2),
        "agent_pvt_medium.in1k": _cfg(),
        "agent_pvt_large.in1k": _cfg(),
        "agent_swin_tiny.in1k": _swin_cfg(82.6),
        "agent_swin_small.in1k": _swin_cfg(83.7),
        "agent_swin_base.in1k": _swin_cfg(84.0),
        "agent_cswin_tiny.in1k": _swin_cfg(83.1),
        "agent_cswin_small.in1k": _swin_cfg(),
        "agent_cswin_base.in1k": _swin_cfg(),
    }
)

_facts = partial(Facts, checkpoint_filter=checkpoint_filter_fn, stage_norms="norm")
_BIAS = Check("the published resizing of biases", "tests/backbones/test_agent.py::test_bias_is_resized_as_published")

register(
    __name__,
    _facts(AgentDeiT, **FEATURES),
    {
        "agent_deit_tiny": Variant(
            "Agent-DeiT-T, 6.0 M parameters.", dict(embed_dim=192, num_heads=3), golden=("agent_deit_tiny",)
        ),
        "agent_deit_small": Variant("Agent-DeiT-S, 22.6 M parameters.", dict(embed_dim=384, num_heads=6)),
        "agent_deit_base": Variant(
            "Agent-DeiT-B, agents in its first four blocks.",
            dict(embed_dim=768, num_heads=12, num_agents=81, agent_blocks=4),
            beyond="softmax attention in the last blocks",
        ),
    },
    checks=(Check("timm's DeiT (the body)", "tests/backbones/test_agent.py::test_deit_body_equals_timm"),),
)

register(
    __name__,
    _facts(AgentPVT),
    {
        "agent_pvt_tiny": Variant(
            "Agent-PVT-T, 11.6 M parameters.",
            dict(depths=(2, 2, 2, 2)),
            golden=("agent_pvt_tiny", "agent_pvt_tiny_256x320"),
        ),
        "agent_pvt_small": Variant("Agent-PVT-S, 20.6 M parameters.", dict(depths=(3, 4, 6, 3))),
        "agent_pvt_medium": Variant("Agent-PVT-M.", dict(depths=(3, 4, 18, 3))),
        "agent_pvt_large": Variant("Agent-PVT-L.", dict(depths=(3, 8, 27, 3))),
    },
    checks=(_BIAS,),
)

register(
    __name__,
    _facts(AgentSwin),
    {
        "agent_swin_tiny": Variant(
            "Agent-Swin-T, 28.9 M parameters; window attention in the last stage.",
            dict(depths=(2, 2, 6, 2), agent_blocks=(None, None, None, 0)),
            golden=("agent_swin_tiny",),
        ),
        "agent_swin_small": Variant(
            "Agent-Swin-S, 49.7 M parameters; window attention in the last two stages.",
            dict(depths=(2, 2, 18, 2), agent_blocks=(None, None, 0, 0)),
        ),
        "agent_swin_base": Variant(
            "Agent-Swin-B, 88.1 M parameters; window attention in the last stage and behind two blocks of the third.",
            dict(
                depths=(2, 2, 18, 2),
                embed_dims=(128, 256, 512, 1024),
                num_heads=(4, 8, 16, 32),
                agent_blocks=(None, None, 2, 0),
            ),
        ),
    },
)

register(
    __name__,
    _facts(AgentCSwin),
    {
        "agent_cswin_tiny": Variant(
            "Agent-CSwin-T, 20.5 M parameters; stripes in the third stage, softmax attention to the map in the last.",
            dict(depths=(2, 4, 18, 1), agent_blocks=(None, None, 0, 0)),
        ),
        "agent_cswin_small": Variant(
            "Agent-CSwin-S; stripes in the third stage, softmax attention to the whole map in the last.",
            dict(depths=(3, 6, 29, 2), agent_blocks=(None, None, 0, 0)),
        ),
        "agent_cswin_base": Variant(
            "Agent-CSwin-B; stripes in the third stage, softmax attention to the whole map in the last.",
            dict(
                depths=(3, 6, 29, 2),
                embed_dims=(96, 192, 384, 768),
                num_heads=(4, 8, 16, 32),
                agent_blocks=(None, None, 0, 0),
            ),
        ),
    },
    checks=(Check("a plain definition of the stripes", "tests/backbones/bodies/test_swin_bodies.py::test_stripes"),),
    no_golden="none was made of the published body; its attention is that of agent_swin_tiny",
)
