"""Bi-level routing attention: its cases, its least work (where the regions come out even) and its compilations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....kernels import routing_attention
from ....kernels.routing_attention import cpu, naive
from ....kernels.routing_attention.operator import operations
from ..cases import Case, block_mask, flex, multiple, sides, works
from ..compilation import StaticCase
from ..roofline import Work

_INDEX = 4  # bytes
REGIONS = (7, 7)
# That a query sees in the static cases: BiFormer's at 224 x 224 and about its at 512 x 512. As many queries see a key.
_KEYS = (64, 384)


def cases(image: tuple[int, int], batch: int, compiler: Callable) -> Iterator[Case]:
    """BiFormer-S: head dimension 32, 7 x 7 regions; maps padded to multiples of the regions, as published."""
    for stage, (dim, topk) in enumerate(((64, 1), (128, 4), (256, 16)), 1):
        height, width = (multiple(side, REGIONS[0]) for side in sides(image, 2 ** (stage + 1)))
        shape = (batch, height, width, dim)
        fixed = dict(num_heads=dim // 32, regions=REGIONS, topk=topk, scale=dim**-0.5)
        count = (shape, dim // 32, REGIONS, topk)
        yield Case(
            "routing_attention",
            f"BiFormer-S stage {stage}",
            image,
            dict.fromkeys(("q", "k", "v"), shape),
            operations(shape, REGIONS, topk),
            {
                "triton": partial(routing_attention, **fixed, backend="triton"),
                "twin": partial(routing_attention, **fixed, backend="torch"),
                "definition": partial(naive.routing_attention, **fixed),
                "compiled definition": compiler(partial(naive.routing_attention, **fixed)),
                "sdpa": partial(cpu.attend_in_one, **fixed),
            },
            works(forward, backward, *count),
            {},
            {"inverted index": (partial(_invert, topk=topk), inverted_index(batch, REGIONS, topk).bytes)},
            {"flex": partial(_flex_routing, **fixed, compiler=compiler)},
            partial(_exact, **fixed),
        )


def _exact(name: str, given: list[Tensor], precise: list[Tensor], regions: tuple[int, int], topk: int, **fixed: Any):
    """Attention to the regions that a form chose: near ties may fall out either way, and differ in all that follows."""
    q, k, _ = (x.detach() for x in given)
    if name == "triton":
        from ....kernels.routing_attention.triton_routing import route

        index = route(q, k, regions, topk).long()
    else:
        inside = naive.to_regions(q.new_ones(1, *q.shape[1:3], 1), regions)
        q, k = (naive.to_regions(x, regions) for x in (q, k))
        as_published = name in ("definition", "compiled definition")
        index = naive.route(q, k, inside, topk) if as_published else cpu.route(q, k, topk, inside[0, :, :, 0] > 0)
    return cpu.attend_to_chosen(precise[0], precise[1], precise[2], index, regions=regions, **fixed)


def _invert(q: torch.Tensor, k: torch.Tensor, _: torch.Tensor, topk: int) -> Callable[[], Any]:
    """The call that lists for each key region the query regions that chose it."""
    from ....kernels.routing_attention import triton_routing

    return partial(triton_routing.inverted_index, triton_routing.route(q.detach(), k.detach(), REGIONS, topk))


def _flex_routing(q, k, v, num_heads, regions, topk, scale, compiler):
    """Tokens in the order of their regions; a block mask of the regions that are chosen."""
    height, width = q.shape[1:3]
    rows, keys = (naive.to_regions(x.detach(), regions) for x in (q, k))
    batch, count, tokens, _ = rows.shape
    chosen = torch.zeros(batch, count, count, dtype=torch.bool, device=q.device)
    chosen.scatter_(2, cpu.route(rows, keys, topk), True)

    def sees(b, h, query, key):
        return chosen[b, query // tokens, key // tokens]

    mask = block_mask(sees, batch, count * tokens, q.device, compiler)
    attend = flex(compiler)

    def form(q, k, v):
        q, k, v = (naive.to_regions(x, regions).flatten(1, 2) for x in (q, k, v))
        q, k, v = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = attend(q, k, v, block_mask=mask, scale=scale)
        return naive.from_regions(out.transpose(1, 2).flatten(2).unflatten(1, (count, tokens)), regions, height, width)

    return form


def routing(shape: tuple[int, int, int, int], regions: tuple[int, int], topk: int, dtype: torch.dtype) -> Work:
    """Means of queries and keys, their products, the choice.

    Args:
        shape: of q, (B, H, W, C).
        regions: (rows, columns).
        topk: regions chosen by each.
        dtype: of q.
    """
    b, h, w, c = shape
    count = regions[0] * regions[1]
    return Work(
        bytes=2 * b * h * w * c * dtype.itemsize + b * count * topk * _INDEX,
        flops=2 * b * h * w * c + 2 * b * count * count * c,
    )


def _attention(
    shape: tuple[int, int, int, int],
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    dtype: torch.dtype,
    maps: int,
    products: int,
) -> Work:
    """Moves so many maps, the log-sum-exp and the index, and multiplies all queries with their keys so many times."""
    b, h, w, c = shape
    count = regions[0] * regions[1]
    keys = topk * -(-h // regions[0]) * -(-w // regions[1])
    return Work(
        bytes=maps * b * h * w * c * dtype.itemsize + b * num_heads * h * w * 4 + b * count * topk * _INDEX,
        flops=2 * products * b * h * w * keys * c,
    )


def forward(
    shape: tuple[int, int, int, int], num_heads: int, regions: tuple[int, int], topk: int, dtype: torch.dtype
) -> Work:
    """Routing, then attention: q, k and v in, the result out; scores and result are products.

    Args:
        shape: of q, (B, H, W, C).
        num_heads: divides C.
        regions: (rows, columns).
        topk: regions chosen by each.
        dtype: of q.
    """
    attention = _attention(shape, num_heads, regions, topk, dtype, maps=4, products=2)
    return routing(shape, regions, topk, dtype) + attention


def inverted_index(batch: int, regions: tuple[int, int], topk: int) -> Work:
    """The lists of regions that chose each region, from the index: every entry is read and written once."""
    count = regions[0] * regions[1]
    return Work(bytes=(2 * batch * count * topk + batch * count) * _INDEX, flops=0)


def backward(
    shape: tuple[int, int, int, int], num_heads: int, regions: tuple[int, int], topk: int, dtype: torch.dtype
) -> Work:
    """The inverted index, then q, k, v, the result and its gradient in, three gradients out.

    Five products: the scores again, the gradients of the weights, and those of v, q and k. Arguments as of `forward`.
    """
    attention = _attention(shape, num_heads, regions, topk, dtype, maps=8, products=5)
    return inverted_index(shape[0], regions, topk) + attention


def static_cases() -> list[StaticCase]:
    """Every kernel as the host functions launch it, in head dimensions of 16 to 64 and regions small to large."""
    from ....kernels.routing_attention import triton, triton_routing

    attention = (
        (triton._forward_kernel, triton._forward_options),
        (triton._query_gradient_kernel, triton._query_gradient_options),
        (triton._key_gradient_kernel, triton._key_gradient_options),
    )
    cases = []
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        for count in (49, 256, triton_routing.MAX_REGIONS):
            options = triton_routing._choice_options(count)
            cases.append(_case(triton_routing._choice_kernel, name, f"{count} regions", options))
        for count in (49, 256):
            options = triton_routing._invert_options(count)
            cases.append(_case(triton_routing._invert_kernel, name, f"{count} regions", options))
        for whole in (True, False):
            ragged = "" if whole else ", ragged"
            options = triton_routing._means_options(64, whole)
            # The pixels of a region of 8 x 8, of both maps.
            counted = dict(steps=64 // options["BLOCK_T"], elements=2 * 64 * options["BLOCK_C"])
            cases.append(_case(triton_routing._means_kernel, name, f"64 channels{ragged}", options, **counted))
            for precision in ("ieee", "tf32") if dtype == torch.float32 else ("ieee",):
                for head_dim in (16, 32, 64):
                    for tokens in (16, 32, 64):
                        for keys in _KEYS:
                            label = f"head_dim {head_dim}, {tokens} tokens, {keys} keys{ragged}"
                            label += f", {precision}" if dtype == torch.float32 else ""
                            for kernel, choose in attention:
                                options = choose(tokens, keys, head_dim, dtype, precision, whole)
                                steps, pairs = -(-keys // options["BLOCK_LISTED"]), options["BLOCK"] * keys
                                cases.append(_case(kernel, name, label, options, steps, pairs))
    return cases


def _case(
    kernel: Any, dtype: str, label: str, options: dict[str, Any], steps: int = 0, elements: int = 0
) -> StaticCase:
    types = dict.fromkeys(("index", "lists", "numbers"), "*i32")
    types |= dict.fromkeys(("logsumexp", "stats", "mean_q", "mean_k"), "*fp32")
    types |= dict.fromkeys(("q", "k", "v", "out", "grad", "grad_q", "grad_k", "grad_v"), f"*{dtype}")
    types["scale"] = "fp32"
    constants = {name: value for name, value in options.items() if name in kernel.arg_names}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names if name not in constants}
    return StaticCase(
        "routing_attention",
        kernel,
        dtype,
        label,
        signature,
        constants,
        options["num_warps"],
        options.get("num_stages", 3),
        # Strides, where C is a multiple of 16.
        tuple(name for name in signature if name in ("q_b", "q_w", "k_b", "k_w", "v_b", "v_w", "grad_w")),
        steps,
        elements,
        options.get("maxnreg"),
    )
