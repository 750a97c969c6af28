"""The operators at the sizes at which models call them, each in every form that `attnzoo bench kernels` compares."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ...kernels._work import Work

OPERATORS = (
    "routing_attention",
    "window_attention",
    "neighborhood_attention",
    "deformable_attention",
    "deformable_attention_3d",
    "large_kernel_attention",
)
# Columns of the table; "twin" is what runs where Triton cannot.
FORMS = ("triton", "twin", "definition", "compiled definition", "sdpa", "flex", "natten", "mmcv")
IMAGES = ((224, 224), (512, 512), (800, 1333))
_LEVELS = (8, 16, 32, 64)
# Of the grid cells seen from above, so many lie in one camera's view.
QUERIES_3D = 2500


@dataclass
class Case:
    """One operator at one size.

    Attributes:
        operator: of `OPERATORS`.
        setting: the model, and what of it.
        image: (height, width) in pixels.
        shapes: of the tensors, by name; all of them learn.
        scales: of the tensors' normal numbers, 1 if not named; 0 is for numbers from 0 to 1.
        parts: by name, steps of "triton" that are timed alone too: what, called with the tensors, makes the call that
            is timed, and the bytes it must move at least.
        forms: by column, called with the tensors.
        work: gives the least work of forward and backward pass for a dtype.
    """

    operator: str
    setting: str
    image: tuple[int, int]
    shapes: dict[str, tuple[int, ...]]
    forms: dict[str, Callable[..., torch.Tensor]]
    work: Callable[[Any], tuple[Work, Work]]
    scales: dict[str, float]
    parts: dict[str, tuple[Callable[..., Callable[[], Any]], int]] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
        """The tensors, drawn alike at every call; feature maps (B, C, H, W) in channels_last."""
        import torch

        torch.manual_seed(0)
        made = []
        for name, shape in self.shapes.items():
            scale = self.scales.get(name, 1.0)
            x = (torch.rand(shape) if scale == 0 else torch.randn(shape) * scale).to(device, dtype)
            if name in ("x", "gate"):
                x = x.contiguous(memory_format=torch.channels_last)
            made.append(x.requires_grad_())
        return made


def cases(
    operator: str, images: tuple[tuple[int, int], ...], batch: int, compiler: Callable[..., Any]
) -> Iterator[Case]:
    """The operator's cases.

    Args:
        operator: of `OPERATORS`.
        images: sizes in pixels.
        batch: images at a time.
        compiler: `torch.compile`, or what stands for it.
    """
    for image in images:
        yield from _MAKERS[operator](image, batch, compiler)


def _work(forward: Any, backward: Any, *count: Any, **more: Any) -> Callable[[Any], tuple[Work, Work]]:
    """The least work of both passes by dtype, which follows the other counts."""
    return lambda dtype: (forward(*count, dtype, **more), backward(*count, dtype, **more))


def _sides(image: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-image[0] // stride), -(-image[1] // stride)


def _multiple(side: int, of: int) -> int:
    return -(-side // of) * of


def _routing(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """BiFormer-S: head dimension 32, 7 x 7 regions; maps padded to multiples of the regions, as published."""
    from ...kernels import routing_attention
    from ...kernels.routing_attention import literal, reference, work

    for stage, (dim, topk) in enumerate(((64, 1), (128, 4), (256, 16)), 1):
        height, width = (_multiple(side, 7) for side in _sides(image, 2 ** (stage + 1)))
        shape = (batch, height, width, dim)
        fixed = dict(num_heads=dim // 32, regions=(7, 7), topk=topk, scale=dim**-0.5)
        count = (shape, dim // 32, (7, 7), topk)
        yield Case(
            "routing_attention",
            f"BiFormer-S stage {stage}",
            image,
            dict.fromkeys(("q", "k", "v"), shape),
            {
                "triton": partial(routing_attention, **fixed, backend="triton"),
                "twin": partial(routing_attention, **fixed, backend="torch"),
                "definition": partial(literal.routing_attention, **fixed),
                "compiled definition": compiler(partial(literal.routing_attention, **fixed)),
                "sdpa": partial(reference.routing_attention, **fixed),
                "flex": partial(_flex_routing, **fixed, compiler=compiler),
            },
            _work(work.forward, work.backward, *count),
            {},
            {"inverted index": (partial(_invert, topk=topk), work.inverted_index(batch, (7, 7), topk).bytes)},
        )


def _invert(q: torch.Tensor, k: torch.Tensor, _: torch.Tensor, topk: int) -> Callable[[], Any]:
    """The call that lists for each key region the query regions that chose it."""
    from ...kernels.routing_attention import triton

    return partial(triton.inverted_index, triton.route(q.detach(), k.detach(), (7, 7), topk))


def _window(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """HAT-S: 6 heads of 24 channels, windows of 16, on maps of the image's own size; plain, shifted, overlapping."""
    from ...kernels import window_attention
    from ...kernels.window_attention import literal, work

    dim, heads, window = 144, 6, 16
    shape = (batch, *(_multiple(side, window) for side in image), dim)
    for name, shift, overlap in (("window", 0, 0), ("shifted", 8, 0), ("overlapping", 0, 8)):
        fixed = dict(num_heads=heads, window_size=window, shift=shift, overlap=overlap, scale=(dim // heads) ** -0.5)

        def public(q, k, v, table, backend, fixed=fixed):
            return window_attention(q, k, v, bias_table=table, backend=backend, **fixed)

        def definition(q, k, v, table, attend=literal.softmax_attention, fixed=fixed):
            return literal.window_attention(q, k, v, bias_table=table, attend=attend, **fixed)

        forms = {
            "triton": partial(public, backend="triton"),
            "twin": partial(public, backend="torch"),
            "definition": definition,
            "compiled definition": compiler(definition),
            "sdpa": partial(definition, attend=literal.fused_attention),
        }
        if shift == 0:
            forms["flex"] = partial(definition, attend=partial(_flex_window, compiler=compiler))
        count = (shape, heads, (window, window), (shift, shift), overlap, True)
        yield Case(
            "window_attention",
            f"HAT-S {name}",
            image,
            dict.fromkeys(("q", "k", "v"), shape) | {"table": ((2 * window - 1 + overlap) ** 2, heads)},
            forms,
            _work(work.forward, work.backward, *count),
            {},
        )


def _neighborhood(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """NAT-Tiny: head dimension 32, kernel 7; DiNAT-Tiny's largest dilation of the first stages."""
    from ...kernels import neighborhood_attention
    from ...kernels.neighborhood_attention import literal, work

    for stage in (1, 2, 3):
        dim, (height, width) = 32 * 2**stage, _sides(image, 2 ** (stage + 1))
        for dilation in sorted({1, min(height, width) // 7}):
            shape, heads = (batch, height, width, dim), dim // 32
            fixed = dict(num_heads=heads, kernel_size=7, dilation=dilation, scale=32**-0.5)

            def public(q, k, v, table, backend, fixed=fixed):
                return neighborhood_attention(q, k, v, bias_table=table, backend=backend, **fixed)

            def definition(q, k, v, table, fixed=fixed):
                return literal.neighborhood_attention(q, k, v, bias_table=table, **fixed)

            def flex(q, k, v, table, fixed=fixed):
                return _flex_neighborhood(q, k, v, table, **fixed, compiler=compiler)

            forms = {
                "triton": partial(public, backend="triton"),
                "twin": partial(public, backend="torch"),
                "definition": definition,
                "compiled definition": compiler(definition),
                "flex": flex,
            }
            count = (shape, heads, 7, dilation)
            yield Case(
                "neighborhood_attention",
                f"NAT-T stage {stage}, dilation {dilation}",
                image,
                dict.fromkeys(("q", "k", "v"), shape) | {"table": (heads, 13, 13)},
                forms | _natten(fixed),
                _work(work.forward, work.backward, *count),
                {},
            )


def _natten(fixed: dict[str, Any]) -> dict[str, Callable[..., torch.Tensor]]:
    """NATTEN's operator, which has no bias: compared in time, without the table's gradient."""
    if importlib.util.find_spec("natten") is None:
        return {}
    from natten.functional import na2d

    def form(q, k, v, table):
        q, k, v = (x.unflatten(3, (fixed["num_heads"], -1)) for x in (q, k, v))
        return na2d(q, k, v, kernel_size=7, dilation=fixed["dilation"], scale=fixed["scale"]).flatten(3)

    return {"natten": form}


def _deformable(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """DINO's encoder: a query for each position of four levels, 8 heads of 32 channels, 4 points; and its decoder."""
    from ...kernels import deformable_attention
    from ...kernels.deformable_attention import work

    sizes = [_sides(image, stride) for stride in _LEVELS]
    starts, positions = _starts(sizes)
    for name, queries in (("encoder", positions), ("decoder", 900)):

        def public(value, places, weights, backend):
            return deformable_attention(value, sizes, starts, places, weights, backend=backend)

        definition = partial(public, backend="torch")
        count = (batch, positions, queries, 8, 32, 4, 4)
        yield Case(
            "deformable_attention",
            f"DINO {name}",
            image,
            {
                "value": (batch, positions, 8, 32),
                "places": (batch, queries, 8, 4, 4, 2),
                "weights": (batch, queries, 8, 4, 4),
            },
            {
                "triton": partial(public, backend="triton"),
                "definition": definition,
                "compiled definition": compiler(definition),
                **_mmcv(sizes, starts),
            },
            _work(work.forward, work.backward, *count),
            {"places": 0, "weights": 0},
        )


def _mmcv(sizes: list[tuple[int, int]], starts: list[int]) -> dict[str, Callable[..., torch.Tensor]]:
    """The compiled operator of mmcv, if it is one and not this package's stand-in."""
    try:
        found = importlib.util.find_spec("mmcv._ext")
    except ImportError:
        return {}
    if found is None or not (found.origin or "").endswith(".so"):
        return {}
    import torch
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    def form(value, places, weights):
        shapes, first = (torch.tensor(x, device=value.device) for x in (sizes, starts))
        return MultiScaleDeformableAttnFunction.apply(value, shapes, first, places, weights, 64)

    return {"mmcv": form}


def _deformable_3d(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """DFA3D in BEVFormer, one camera: 8 heads of 32 channels, 8 points, 64 shared bins."""
    from ...kernels import deformable_attention_3d
    from ...kernels.deformable_attention import work
    from ...kernels.deformable_attention_3d import reference

    sizes = [_sides(image, stride) for stride in _LEVELS]
    starts, positions = _starts(sizes)

    def public(value, depth, places, weights, backend):
        return deformable_attention_3d(value, depth, sizes, starts, places, weights, backend=backend)

    def definition(value, depth, places, weights):
        return reference.by_volume(value, depth, sizes, starts, places, weights)

    yield Case(
        "deformable_attention_3d",
        "DFA3D, one camera",
        image,
        {
            "value": (batch, positions, 8, 32),
            "depth": (batch, positions, 1, 64),
            "places": (batch, QUERIES_3D, 8, 4, 8, 3),
            "weights": (batch, QUERIES_3D, 8, 4, 8),
        },
        {
            "triton": partial(public, backend="triton"),
            "twin": partial(public, backend="torch"),
            "definition": definition,
            "compiled definition": compiler(definition),
        },
        _work(work.forward, work.backward, batch, positions, QUERIES_3D, 8, 32, 4, 8, bins=64),
        {"depth": 0, "places": 0, "weights": 0},
    )


def _starts(sizes: list[tuple[int, int]]) -> tuple[list[int], int]:
    """First position of each level, and their number in all."""
    counts = [height * width for height, width in sizes]
    return [sum(counts[:i]) for i in range(len(counts))], sum(counts)


def _large_kernel(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """VAN-B2's attention, whole, and its two depth-wise convolutions; cuDNN runs the definition on a GPU."""
    from ...kernels import depthwise_conv, large_kernel_attention
    from ...kernels.large_kernel_attention import reference, work

    for stage, dim in enumerate((64, 128, 320, 512), 1):
        shape = (batch, dim, *_sides(image, 2 ** (stage + 1)))
        square = (dim, dim, 1, 1)
        yield Case(
            "large_kernel_attention",
            f"VAN-B2 stage {stage}",
            image,
            {
                "x": shape,
                "local": (dim, 1, 5, 5),
                "local_bias": (dim,),
                "dilated": (dim, 1, 7, 7),
                "dilated_bias": (dim,),
                "pointwise": square,
                "pointwise_bias": (dim,),
            },
            {
                "triton": partial(large_kernel_attention, backend="triton"),
                "twin": partial(large_kernel_attention, backend="torch"),
                "definition": reference.large_kernel_attention,
                "compiled definition": compiler(reference.large_kernel_attention),
            },
            _work(work.forward, work.backward, shape),
            {"local": 0.2, "dilated": 1 / 7, "pointwise": dim**-0.5},
        )
        for side, dilation in ((5, 1), (7, 3)):

            def definition(x, weight, bias, side=side, dilation=dilation):
                import torch

                reach = dilation * (side // 2)
                return torch.nn.functional.conv2d(x, weight, bias, padding=reach, dilation=dilation, groups=len(weight))

            yield Case(
                "large_kernel_attention",
                f"VAN-B2 stage {stage}, depth-wise {side} x {side}, dilation {dilation}",
                image,
                {"x": shape, "weight": (dim, 1, side, side), "bias": (dim,)},
                {
                    "triton": partial(depthwise_conv, dilation=dilation, backend="triton"),
                    "twin": partial(depthwise_conv, dilation=dilation, backend="torch"),
                    "definition": definition,
                    "compiled definition": compiler(definition),
                },
                _work(work.depthwise_forward, work.depthwise_backward, shape, (side, side)),
                {"weight": 1 / side},
            )


def _flex(compiler: Callable) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return compiler(flex_attention)


def _flex_routing(q, k, v, num_heads, regions, topk, scale, compiler):
    """Tokens in the order of their regions; a block mask of the regions that are chosen."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    from ...kernels.routing_attention.reference import from_regions, route, to_regions

    _, height, width, _ = q.shape
    q, k, v = (to_regions(x, *regions) for x in (q, k, v))
    batch, count, tokens, _ = q.shape
    chosen = torch.zeros(batch, count, count, dtype=torch.bool, device=q.device).scatter_(2, route(q, k, topk), True)

    def sees(b, h, query, key):
        return chosen[b, query // tokens, key // tokens]

    mask = create_block_mask(sees, batch, None, count * tokens, count * tokens, device=str(q.device))
    q, k, v = (x.flatten(1, 2).unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = _flex(compiler)(q, k, v, block_mask=mask, scale=scale)
    return from_regions(out.transpose(1, 2).flatten(2).unflatten(1, (count, tokens)), regions, height, width)


def _flex_window(q, k, v, bias, scale, compiler):
    """Attention of windows that are laid out already, the bias read by the kernel."""

    def add(score, b, h, query, key):
        return score + bias[0, h, query, key]

    return _flex(compiler)(q, k, v, score_mod=add, scale=scale)


def _flex_neighborhood(q, k, v, table, num_heads, kernel_size, dilation, scale, compiler):
    """A block mask of the pixels' windows, and their bias, from indices."""
    from torch.nn.attention.flex_attention import create_block_mask

    from ...kernels.neighborhood_attention.literal import window

    _, height, width, _ = q.shape
    rows, cols = (window(side, kernel_size, dilation, q.device)[0] for side in (height, width))
    first, last = (rows[:, 0], cols[:, 0]), (rows[:, -1], cols[:, -1])

    def sees(b, h, query, key):
        y, x, i, j = query // width, query % width, key // width, key % width
        near = (i >= first[0][y]) & (i <= last[0][y]) & (j >= first[1][x]) & (j <= last[1][x])
        return near & ((i - y) % dilation == 0) & ((j - x) % dilation == 0)

    def add(score, b, h, query, key):
        y, x, i, j = query // width, query % width, key // width, key % width
        row, column = ((to - at) // dilation + kernel_size - 1 for at, to in ((y, i), (x, j)))
        return score + table[h, row.clamp(0, 2 * kernel_size - 2), column.clamp(0, 2 * kernel_size - 2)]

    mask = create_block_mask(sees, None, None, height * width, height * width, device=str(q.device))
    q, k, v = (x.flatten(1, 2).unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = _flex(compiler)(q, k, v, score_mod=add, block_mask=mask, scale=scale)
    return out.transpose(1, 2).flatten(2).unflatten(1, (height, width))


_MAKERS: dict[str, Callable[[tuple[int, int], int, Callable], Iterator[Case]]] = {
    "routing_attention": _routing,
    "window_attention": _window,
    "neighborhood_attention": _neighborhood,
    "deformable_attention": _deformable,
    "deformable_attention_3d": _deformable_3d,
    "large_kernel_attention": _large_kernel,
}
