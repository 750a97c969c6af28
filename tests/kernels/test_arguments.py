"""Every public operator refuses what it cannot compute, on every path, before anything is launched."""

import inspect

import pytest
import torch
from kernel_helpers import CASES, DEVICE, TRITON, cases

from attnzoo import kernels
from attnzoo.kernels import _dispatch

ATTENTION = ("routing", "window", "window_shifted", "neighborhood", "generalized")


def faults():
    """(case, changed arguments, what the error says)."""
    x = torch.zeros(2, 6, 8, 4)
    yield from ((name, dict(k=x[:, :3]), "q, k and v must be") for name in ATTENTION)
    yield from ((name, dict(v=x[0]), "q, k and v must be") for name in ATTENTION)
    yield from ((name, dict(q=None), "q must be a tensor, got NoneType") for name in ATTENTION)
    yield from ((name, dict(v=None), "v must be a tensor, got NoneType") for name in ATTENTION)
    yield from ((name, dict(k=x.half()), "k must be torch.float32 as q is, got torch.float16") for name in ATTENTION)
    yield from ((name, dict(v=x.long()), "v must be float32, float64, bfloat16 or float16") for name in ATTENTION)
    yield from ((name, dict(q=x.to(torch.complex64)), "q must be float32, float64") for name in ATTENTION)
    yield from ((name, dict(v=x.to("meta")), f"v must be on {DEVICE}.* as q is, got meta") for name in ATTENTION)
    yield from ((name, dict(q=x.to_sparse()), "q must be a dense tensor") for name in ATTENTION)
    yield from ((name, dict(num_heads=3), "num_heads must divide C") for name in ATTENTION)
    yield from ((name, dict(num_heads=0), "num_heads must divide C") for name in ATTENTION)
    yield from ((name, dict(num_heads=2.0), "num_heads must be an integer, got 2.0") for name in ATTENTION)
    yield from ((name, dict(num_heads=True), "num_heads must be an integer, got True") for name in ATTENTION)
    yield from ((name, dict(scale="1"), "scale must be a number, got '1'") for name in ATTENTION)
    yield from (
        (name, dict(scale=-(2**70)), "scale must be between .* as an integer, got -1180591620717411303424")
        for name in ATTENTION
    )
    yield from ((name, dict(scale=float("nan")), "scale must be finite, got nan") for name in ATTENTION)
    yield from ((name, dict(scale=float("-inf")), "scale must be finite, got -inf") for name in ATTENTION)
    empty = dict.fromkeys("qkv", torch.zeros(2, 6, 8, 0))
    yield from ((name, empty, "num_heads must divide C = 0") for name in ("routing", "window_without_bias"))
    yield "routing", dict(regions=(0, 3)), "regions must be at least 1"
    yield "routing", dict(regions=3), "regions must be two integers, got 3"
    yield "routing", dict(regions=(3, 2.0)), "regions must be an integer, got 2.0"
    yield "routing", dict(topk=7), "topk must be 1 to 6"
    yield "routing", dict(topk=0), "topk must be 1 to 6"
    yield "routing", dict(topk=1.0), "topk must be an integer"
    yield "routing", dict(scale=None), "scale must be a number, got None"
    yield "routing_packed", dict(qkv=None), "qkv must be a tensor, got NoneType"
    yield "routing_packed", dict(qkv=x.long()), "qkv must be float32, float64, bfloat16 or float16"
    yield "routing_packed", dict(qkv=x.to_sparse()), "qkv must be a dense tensor"
    yield "routing_packed", dict(qkv=x), r"qkv must be \(B, H, W, 3 \* C\), got \(2, 6, 8, 4\)"
    yield "routing_packed", dict(qkv=x[0]), r"qkv must be \(B, H, W, 3 \* C\), got \(6, 8, 4\)"
    yield "routing_packed", dict(qkv=x[..., :0]), "num_heads must divide C = 0"
    yield "routing_packed", dict(num_heads=3), "num_heads must divide C = 4, .*, got 3"
    yield "routing_packed", dict(num_heads=2.0), "num_heads must be an integer, got 2.0"
    yield "routing_packed", dict(regions=(0, 3)), "regions must be at least 1"
    yield "routing_packed", dict(topk=7), "topk must be 1 to 6"
    yield "routing_packed", dict(scale=None), "scale must be a number, got None"
    for name in ("window", "window_shifted"):
        yield name, dict(window_size=5, bias_table=None), "H and W must be multiples of window_size"
        yield name, dict(window_size=0), "window_size must be at least 1"
        yield name, dict(window_size=2.0), "window_size must be two integers"
        yield name, dict(window_size=(2, 2, 2)), "window_size must be two integers"
        yield name, dict(shift=(0, 2)), "shift must be at least 0 and less"
        yield name, dict(shift=-1), "shift must be at least 0 and less"
        yield name, dict(overlap=1), "overlap must be even"
        yield name, dict(overlap=-2), "overlap must be even"
        yield name, dict(overlap="2"), "overlap must be an integer"
        yield name, dict(bias_table=torch.zeros(8, 2)), r"bias_table must be \(9, 2\) for these windows, got \(8, 2\)"
        yield name, dict(bias_table=torch.zeros(9)), r"bias_table must be \(9, 2\) for these windows, got \(9,\)"
        yield name, dict(bias_table=torch.zeros(9, 2).int()), "bias_table must be float32"
        yield name, dict(bias_table=torch.zeros(9, 2, device="meta")), "bias_table must be on"
    yield "window", dict(overlap=2, shift=1), "shift must be 0 where windows overlap"
    yield "window_packed", dict(qkv=None), "qkv must be a tensor, got NoneType"
    yield "window_packed", dict(qkv=x.long()), "qkv must be float32, float64, bfloat16 or float16"
    yield "window_packed", dict(qkv=x.to_sparse()), "qkv must be a dense tensor"
    yield "window_packed", dict(qkv=x), r"qkv must be \(B, H, W, 3 \* C\), got \(2, 6, 8, 4\)"
    yield "window_packed", dict(qkv=x[0]), r"qkv must be \(B, H, W, 3 \* C\), got \(6, 8, 4\)"
    yield "window_packed", dict(qkv=x[..., :0]), "num_heads must divide C = 0"
    yield "window_packed", dict(num_heads=3), "num_heads must divide C = 4, .*, got 3"
    yield "window_packed", dict(num_heads=2.0), "num_heads must be an integer, got 2.0"
    yield "window_packed", dict(window_size=5, bias_table=None), "H and W must be multiples of window_size"
    yield "window_packed", dict(overlap=2), "shift must be 0 where windows overlap"
    yield "window_packed", dict(bias_table=torch.zeros(9, 2, device="meta")), "bias_table must be on .* as qkv is"
    yield "window_packed", dict(scale=float("inf")), "scale must be finite, got inf"
    yield "neighborhood", dict(kernel_size=4), "kernel_size must be odd and 3 to 15"
    yield "neighborhood", dict(kernel_size=17), "kernel_size must be odd and 3 to 15"
    yield "neighborhood", dict(kernel_size=3.0), "kernel_size must be an integer"
    yield "neighborhood", dict(dilation=0), "dilation must be at least 1"
    yield "neighborhood", dict(bias_table=torch.zeros(2, 5, 4)), r"bias_table must be \(2, 5, 5\), got \(2, 5, 4\)"
    yield "neighborhood", dict.fromkeys("qkv", torch.zeros(2, 0, 8, 4)), "H, W and C must be at least 1"
    yield "neighborhood_packed", dict(qkv=None), "qkv must be a tensor, got NoneType"
    yield "neighborhood_packed", dict(qkv=x.long()), "qkv must be float32, float64, bfloat16 or float16"
    yield "neighborhood_packed", dict(qkv=x.to_sparse()), "qkv must be a dense tensor"
    yield "neighborhood_packed", dict(qkv=x), r"qkv must be \(B, H, W, 3 \* C\), got \(2, 6, 8, 4\)"
    yield "neighborhood_packed", dict(qkv=x[0]), r"qkv must be \(B, H, W, 3 \* C\), got \(6, 8, 4\)"
    yield "neighborhood_packed", dict(qkv=torch.zeros(2, 0, 8, 12)), r"H, W and C must be at least 1, got \(0, 8, 4\)"
    yield "neighborhood_packed", dict(qkv=x[..., :0]), "num_heads must divide C = 0"
    yield "neighborhood_packed", dict(num_heads=3), "num_heads must divide C = 4, .*, got 3"
    yield "neighborhood_packed", dict(num_heads=2.0), "num_heads must be an integer, got 2.0"
    yield "neighborhood_packed", dict(kernel_size=4), "kernel_size must be odd and 3 to 15"
    yield "neighborhood_packed", dict(kernel_size=3.0), "kernel_size must be an integer, got 3.0"
    yield "neighborhood_packed", dict(dilation=0), "dilation must be at least 1"
    yield "neighborhood_packed", dict(scale="1"), "scale must be a number, got '1'"
    yield "neighborhood_packed", dict(bias_table=torch.zeros(2, 5, 4)), r"bias_table must be \(2, 5, 5\), got \(2, 5, 4"
    yield "neighborhood_packed", dict(bias_table=torch.zeros(2, 5, 5).int()), "bias_table must be float32"
    yield "neighborhood_packed", dict(bias_table=torch.zeros(2, 5, 5, device="meta")), "bias_table must be on"
    yield "generalized", dict(kernel_size=0), "kernel_size must be at least 1, got 0"
    yield "generalized", dict(kernel_size=(4, 3.0)), "kernel_size must be an integer, got 3.0"
    yield "generalized", dict(kernel_size=(4, 3, 3)), r"kernel_size must be two integers, got \(4, 3, 3\)"
    yield "generalized", dict(stride=(5, 2)), r"stride must be 1 to kernel_size \(4, 3\), got \(5, 2\)"
    yield "generalized", dict(stride=0), r"stride must be 1 to kernel_size \(4, 3\), got \(0, 0\)"
    yield "generalized", dict(stride=None), "stride must be an integer, got None"
    yield "generalized", dict(dilation=(1, 0)), r"dilation must be at least 1, got \(1, 0\)"
    yield "generalized", dict(is_causal=1), "is_causal must be True or False, or two of these, got 1"
    yield "generalized", dict(is_causal=(True, 0)), r"is_causal must be True or False, or two of these, got \(True, 0\)"
    yield "generalized", dict(bias_table=torch.zeros(2, 5, 7)), r"bias_table must be \(2, 7, 5\), got \(2, 5, 7\)"
    yield "generalized", dict(bias_table=torch.zeros(2, 7, 5).int()), "bias_table must be float32"
    yield "generalized", dict.fromkeys("qkv", torch.zeros(2, 0, 8, 4)), "H, W and C must be at least 1"
    tokens = torch.zeros(2, 2, 48, 4)
    for name in ("flash_bias", "block_sparse"):
        yield name, dict(q=tokens[0]), r"q, k and v must be \(B, heads, N, D\), got \(2, 48, 4\)"
        yield name, dict(k=tokens[:, :1]), "q, k and v must be .* and .B, heads, M, E., got"
        yield name, dict(k=tokens[..., :3]), "q, k and v must be .* and .B, heads, M, E., got"
        yield name, dict(v=tokens[:, :, :47]), "q, k and v must be .* and .B, heads, M, E., got"
        yield name, dict(v=tokens[..., :0]), "must have a head, a token and a channel at least, got"
        yield name, dict.fromkeys("kv", tokens[:, :, :0]), "q, k and v must have a head, a token and a channel at least"
        yield name, dict(q=None), "q must be a tensor, got NoneType"
        yield name, dict(v=tokens.long()), "v must be float32, float64, bfloat16 or float16"
        yield name, dict(k=tokens.half()), "k must be torch.float32 as q is, got torch.float16"
        yield name, dict(k=tokens.to("meta")), "k must be on"
        yield name, dict(scale="1"), "scale must be a number, got '1'"
        yield name, dict(scale=float("inf")), "scale must be finite, got inf"
    yield "flash_bias", dict(query_factor=None), "query_factor must be a tensor, got NoneType"
    yield "flash_bias", dict(key_factor=None), "key_factor must be a tensor, got NoneType"
    yield "flash_bias", dict(query_factor=torch.zeros(2, 47, 3)), r"query_factor must be \(2 or 1, 48, R=3\)"
    yield "flash_bias", dict(query_factor=torch.zeros(3, 48, 3)), r"query_factor must be \(2 or 1, 48, R=3\)"
    yield "flash_bias", dict(key_factor=torch.zeros(2, 48, 2)), r"key_factor must be \(2 or 1, 48, R=3\), or one"
    yield "flash_bias", dict(key_factor=torch.zeros(3, 2, 48, 3)), r"key_factor must be .* got \(3, 2, 48, 3\)"
    yield "flash_bias", dict(key_factor=torch.zeros(48, 3)), r"key_factor must be .* got \(48, 3\)"
    yield "flash_bias", dict(key_factor=torch.zeros(2, 48, 3).int()), "key_factor must be float32"
    yield "flash_bias", dict(key_factor=torch.zeros(2, 48, 3, device="meta")), "key_factor must be on"
    yield "block_sparse", dict(block_size=0), "block_size must be at least 1, got 0"
    yield "block_sparse", dict(block_size=(5, 4.0)), "block_size must be an integer, got 4.0"
    yield "block_sparse", dict(block_size=(5, 4, 3)), "block_size must be two integers"
    yield "block_sparse", dict(similarity=None), "similarity must be a number, got None"
    yield "block_sparse", dict(similarity=float("nan")), "similarity must be a number, got nan"
    yield "block_sparse", dict(topk=0), "topk must be above 0, to 1, got 0"
    yield "block_sparse", dict(topk=1.5), "topk must be above 0, to 1, got 1.5"
    yield "block_sparse", dict(topk=True), "topk must be a number, got True"
    yield "block_sparse", dict(topk=None), "topk or cdf must be given, and the other None, got None and None"
    yield "block_sparse", dict(cdf=0.9), "topk or cdf must be given, and the other None, got 0.4 and 0.9"
    yield "block_sparse", dict(topk=None, cdf=-0.1), "cdf must be 0 to 1, got -0.1"
    yield "block_sparse", dict(block_map=[[True]]), "block_map must be a tensor of bool, got"
    yield "block_sparse", dict(block_map=torch.ones(2, 2, 10, 12)), "block_map must be a tensor of bool, got"
    kept = torch.ones(2, 2, 10, 12, dtype=torch.bool)
    yield "block_sparse", dict(block_map=kept[..., :11]), r"block_map must be \(2, 2, 10, 12\), got \(2, 2, 10, 11\)"
    yield "block_sparse", dict(block_map=kept.to("meta")), "block_map must be on"
    yield "block_sparse", dict(block_map=kept & False), "block_map must keep a block of keys for every block of queries"
    for name in ("depthwise", "depthwise_dense", "large_kernel"):
        weight, bias = ("local_weight", "local_bias") if name == "large_kernel" else ("weight", "bias")
        yield name, dict(x=torch.zeros(4, 6, 8)), r"x must be \(B, C, H, W\) with a channel at least, got \(4, 6, 8\)"
        yield name, dict(x=torch.zeros(2, 0, 6, 8)), "with a channel at least"
        yield name, dict(x=None), "x must be a tensor"
        yield name, {weight: None}, f"{weight} must be a tensor, got NoneType"
        yield name, dict(dilation=2**40), "dilation must be between -2147483647 and 2147483647, got 1099511627776"
        yield name, {weight: torch.zeros(5, 1, 3, 3)}, rf"{weight} must be \(C=4, 1, K, L\), got \(5, 1, 3, 3\)"
        yield name, {weight: torch.zeros(4, 4, 3, 3)}, rf"{weight} must be \(C=4, 1, K, L\), got \(4, 4, 3, 3\)"
        yield name, {weight: torch.zeros(4, 3, 3)}, rf"{weight} must be \(C=4, 1, K, L\), got \(4, 3, 3\)"
        yield name, {weight: torch.zeros(4, 1, 4, 3)}, f"{weight} must have odd sides, got 4 x 3"
        yield name, {weight: torch.zeros(4, 1, 3, 0)}, f"{weight} must have odd sides, got 3 x 0"
        yield name, {weight: torch.zeros(4, 1, 3, 3).half()}, f"{weight} must be torch.float32 as x is"
        yield name, {weight: torch.zeros(4, 1, 3, 3, device="meta")}, f"{weight} must be on"
        yield name, {bias: torch.zeros(3)}, rf"{bias} must be \(4,\), got \(3,\)"
        yield name, {bias: torch.zeros(4, 1)}, rf"{bias} must be \(4,\), got \(4, 1\)"
        yield name, {bias: torch.zeros(4).double()}, f"{bias} must be torch.float32 as x is"
        yield name, dict(dilation=0), "dilation must be at least 1, got 0"
        yield name, dict(dilation=1.5), "dilation must be an integer"
    yield "large_kernel", dict(dilated_weight=torch.zeros(4, 1, 2, 2)), "dilated_weight must have odd sides"
    yield "large_kernel", dict(dilated_bias=torch.zeros(8)), r"dilated_bias must be \(4,\), got \(8,\)"
    yield "large_kernel", dict(pointwise_bias=torch.zeros(8)), r"pointwise_bias must be \(4,\), got \(8,\)"
    wide = dict(pointwise_weight=torch.zeros(8, 4, 1, 1), pointwise_bias=None)
    yield "large_kernel", wide, r"pointwise_weight must be \(4, 4, 1, 1\), got \(8, 4, 1, 1\)"
    for name in ("pointwise", "pointwise_gated"):
        yield name, dict(weight=torch.zeros(6, 3, 1, 1)), r"weight must be \(D, C=4, 1, 1\), got \(6, 3, 1, 1\)"
        yield name, dict(weight=torch.zeros(6, 4)), r"weight must be \(D, C=4, 1, 1\), got \(6, 4\)"
        yield name, dict(weight=torch.zeros(6, 4, 3, 3)), r"weight must be \(D, C=4, 1, 1\)"
        yield name, dict(bias=torch.zeros(4)), r"bias must be \(6,\), got \(4,\)"
        yield name, dict(gate=torch.zeros(2, 1, 6, 8)), r"gate must be \(2, 6, 6, 8\), got \(2, 1, 6, 8\)"
        yield name, dict(gate=torch.zeros(2, 6, 8, 6)), r"gate must be \(2, 6, 6, 8\), got \(2, 6, 8, 6\)"
        yield name, dict(gate=torch.zeros(6)), r"gate must be \(2, 6, 6, 8\), got \(6,\)"
        yield name, dict(gate=torch.zeros(2, 6, 6, 8).int()), "gate must be float32"
        yield name, dict(x=torch.zeros(2, 4, 6, 8).half()), "weight must be torch.float16 as x is, got torch.float32"
    for name in ("deformable", "deformable_3d"):
        axes = 2 if name == "deformable" else 3
        places = f"sampling_locations must be .B=2, Q, M=2, L=2, P, {axes}.*got shape"
        yield name, dict(value=torch.zeros(2, 54, 8)), r"value must be \(B, K, M, C\), got shape \(2, 54, 8\)"
        yield name, dict(value=torch.zeros(2, 54, 2, 4).int()), "value must be float32"
        yield name, dict(sampling_locations=None), "sampling_locations must be a tensor, got NoneType"
        yield name, dict(attention_weights=None), "attention_weights must be a tensor, got NoneType"
        yield name, dict(sampling_locations=torch.zeros(2, 5, 2, 2, 3, 5 - axes)), places
        yield name, dict(sampling_locations=torch.zeros(1, 5, 2, 2, 3, axes)), places
        yield name, dict(sampling_locations=torch.zeros(2, 5, 2, 2, axes)), places
        yield name, dict(attention_weights=torch.zeros(2, 5, 2, 2, 4)), "attention_weights must have shape"
        yield name, dict(attention_weights=torch.zeros(2, 5, 2, 2, 3, device="meta")), "attention_weights must be on"
        yield name, dict(spatial_shapes=[(6, 8)]), "level_start_index has 2 levels, spatial_shapes has 1"
        yield name, dict(spatial_shapes=[(6, 8), (2, 3, 1)]), "each of spatial_shapes must be two integers"
        yield name, dict(spatial_shapes=[(6, 8), (2, 3.5)]), "each of spatial_shapes must be an integer"
        yield name, dict(spatial_shapes=5), "spatial_shapes must be a tensor or a list, got int"
        yield name, dict(spatial_shapes=torch.zeros(2, 2)), "spatial_shapes must hold integers, got torch.float32"
        yield name, dict(spatial_shapes=torch.ones(2, 3).int()), r"spatial_shapes must be \(L, 2\), got shape \(2, 3\)"
        yield name, dict(spatial_shapes=[(6, 8), (2, 4)]), "does not fit the 54 positions of value"
        yield name, dict(spatial_shapes=[(6, 8), (0, 3)]), "levels must have a pixel and start at 0 or later"
        yield name, dict(spatial_shapes=[(6, 8), (-2, -3)]), "levels must have a pixel and start at 0 or later"
        yield name, dict(level_start_index=[0, -1]), "levels must have a pixel and start at 0 or later"
        yield name, dict(level_start_index=[0, 40]), "overlap"
        yield name, dict(spatial_shapes=[[6, 8], (2, 3)], level_start_index=[0, 0]), "overlap"
        yield name, dict(level_start_index=torch.tensor([[0, 48]])), r"level_start_index must be \(L,\)"
        yield name, dict(level_start_index=[0, 48.0]), "level_start_index must be an integer"
    yield "deformable_3d", dict(depth=torch.zeros(2, 54, 3, 4)), r"depth must be \(B=2, K=54, M=2 or 1, D\)"
    yield "deformable_3d", dict(depth=torch.zeros(2, 53, 2, 4)), r"depth must be \(B=2, K=54, M=2 or 1, D\)"
    yield "deformable_3d", dict(depth=torch.zeros(2, 54, 2, 0)), r"depth must be \(B=2, K=54, M=2 or 1, D\)"
    yield "deformable_3d", dict(depth=None), "depth must be a tensor, got NoneType"
    for name in ("deformable_offsets", "deformable_boxes"):
        numbers = 2 if name == "deformable_offsets" else 4
        points = r"reference_points must be .B=2, Q=5, L=2, 2 or 4.*got shape"
        yield name, dict(reference_points=torch.zeros(2, 5, 2, 3)), points
        yield name, dict(reference_points=torch.zeros(2, 5, 1, numbers)), points
        yield name, dict(reference_points=torch.zeros(2, 5, numbers)), points
        yield name, dict(reference_points=torch.zeros(2, 5, 2, numbers).int()), "reference_points must be float32"
        yield name, dict(reference_points=None), "reference_points must be a tensor, got NoneType"
        yield name, dict(sampling_offsets=torch.zeros(2, 4, 2, 2, 3, 2)), "attention_logits must have shape"
        yield name, dict(sampling_offsets=torch.zeros(2, 5, 2, 2, 3, 3)), r"sampling_offsets must be .B=2, Q, M=2, L=2"
        yield name, dict(attention_logits=torch.zeros(2, 5, 2, 2, 4)), "attention_logits must have shape"
        yield name, dict(attention_logits=torch.zeros(2, 5, 2, 2, 3, device="meta")), "attention_logits must be on"
        yield name, dict(level_start_index=[0, 40]), "overlap"
        yield name, dict(value=torch.zeros(2, 54, 8)), r"value must be \(B, K, M, C\), got shape \(2, 54, 8\)"


FAULTS = list(faults())
NAMES = [f"{name}-{'-'.join(changes)}-{i}" for i, (name, changes, _) in enumerate(FAULTS)]


def arguments(name, changes):
    """The case's operator and its arguments in float32, some of them changed."""
    case = cases(2, 6, 8, 4)[name]
    given = {key: x.float().to(DEVICE) for key, x in case.tensors.items()} | case.settings
    for key, value in changes.items():
        # The windows of these cases have four times the channels.
        wide = isinstance(value, torch.Tensor) and name.startswith("window") and key in ("q", "k", "v")
        on_device = isinstance(value, torch.Tensor) and value.device.type == "cpu"
        given[key] = value.to(DEVICE) if on_device else value
        if wide and name in ("window", "window_shifted") and value.shape[-1] == 4 and value.layout == torch.strided:
            given[key] = torch.cat([given[key]] * 4, -1)
    return case.name, given


@pytest.mark.parametrize(("name", "changes", "message"), FAULTS, ids=NAMES)
def test_refused(name, changes, message):
    operator, given = arguments(name, changes)
    function = getattr(kernels, operator)
    with pytest.raises((TypeError, ValueError), match=message):
        function(**given)
    if "backend" not in inspect.signature(function).parameters:
        return
    with pytest.raises((TypeError, ValueError), match=message):
        function(**given, backend="torch")
    # Neither launched nor called impossible: wrong with any backend.
    with pytest.raises((TypeError, ValueError), match=message):
        function(**given, backend="triton")
    assert not kernels.can_run(operator, **given)
    with pytest.raises(RuntimeError, match=f"{operator}: Triton cannot run: .*{message}"):
        kernels.can_run(operator, **given, raise_error=True)


@pytest.mark.parametrize(("name", "changes", "message"), FAULTS[::4], ids=NAMES[::4])
def test_refused_when_compiled(name, changes, message):
    operator, given = arguments(name, changes)
    if any(isinstance(x, float) and x != x for x in changes.values()) or any(x in changes.values() for x in ("1", "2")):
        pytest.skip("a graph takes no such constants")
    torch.compiler.reset()
    compiled = torch.compile(getattr(kernels, operator), backend="eager")
    with pytest.raises((TypeError, ValueError), match=message):
        compiled(**given)


@pytest.mark.parametrize("name", CASES)
def test_right_arguments_are_not_refused(name):
    operator, given = arguments(name, {})
    assert getattr(kernels, operator)(**given).isfinite().all()
    if cases()[name].has_kernels and (_dispatch.INTERPRETED or DEVICE == "cuda"):
        assert kernels.can_run(operator, **given) == (name in TRITON)


@pytest.mark.parametrize("name", [name for name, case in cases().items() if case.has_kernels])
def test_can_run_takes_what_the_operator_takes(name):
    operator, given = arguments(name, {})
    signature = inspect.signature(getattr(kernels, operator))
    expected = kernels.can_run(operator, **given)
    for backend in ("auto", "triton", "torch"):
        assert kernels.can_run(operator, **given, backend=backend) == expected
        bound = signature.bind(**given, backend=backend)
        bound.apply_defaults()
        assert list(bound.arguments)[-1] == "backend"
        assert kernels.can_run(operator, *bound.arguments.values()) == expected
    assert not kernels.can_run(operator, **given, backend="bogus")
    with pytest.raises(RuntimeError, match="backend must be one of auto, triton, torch, got 'bogus'"):
        kernels.can_run(operator, **given, backend="bogus", raise_error=True)
    with pytest.raises(RuntimeError, match=f"{operator}: Triton cannot run: .*too many positional arguments"):
        kernels.can_run(operator, *bound.arguments.values(), None, raise_error=True)
    with pytest.raises(RuntimeError, match=f"{operator}: Triton cannot run: .*unexpected keyword argument 'window'"):
        kernels.can_run(operator, **given, window=7, raise_error=True)


@pytest.mark.skipif(DEVICE == "cpu" and not _dispatch.INTERPRETED, reason="needs a GPU or the interpreter")
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_sizes_of_a_compiled_graph_are_checked_as_it_runs(backend):
    """Free sizes are nothing that a trace could check: rows that fill no window would stay unwritten."""
    torch.compiler.reset()
    compiled = torch.compile(
        lambda q: kernels.window_attention(q, q, q, 2, 4, backend=backend),
        backend="eager",
        fullgraph=True,
        dynamic=True,
    )
    assert compiled(torch.randn(2, 8, 12, 8, device=DEVICE)).isfinite().all()
    with pytest.raises(ValueError, match=r"H and W must be multiples of window_size \(4, 4\), got \(9, 12\)"):
        compiled(torch.randn(2, 9, 12, 8, device=DEVICE))


def test_scripts_refuse_silent_errors():
    """What PyTorch's operators would take for something else."""
    x = torch.randn(2, 4, 6, 8)
    depthwise, pointwise = torch.jit.script(kernels.depthwise_conv), torch.jit.script(kernels.pointwise_conv)
    with pytest.raises(torch.jit.Error, match="weight must have odd sides"):
        depthwise(x, torch.zeros(4, 1, 2, 2))
    with pytest.raises(torch.jit.Error, match="gate must be"):
        pointwise(x, torch.zeros(4, 4, 1, 1), None, torch.zeros(2, 1, 6, 8))
    q = torch.randn(2, 4, 8, 4)
    with pytest.raises(torch.jit.Error, match="bias_table must be"):
        torch.jit.script(kernels.window_attention)(q, q, q, 2, 4, bias_table=torch.zeros(81, 2))
    with pytest.raises(torch.jit.Error, match="topk must be 1 to 4"):
        torch.jit.script(kernels.routing_attention)(q, q, q, 2, (2, 2), 5, 0.5)
    with pytest.raises(torch.jit.Error, match="kernel_size must be odd"):
        torch.jit.script(kernels.neighborhood_attention)(q, q, q, 2, 4)


def test_autocast_takes_no_other_numbers():
    x = torch.zeros(2, 6, 8, 4)
    for dtype in (torch.float8_e4m3fn, torch.int64):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="k must be float32, float64"):
            kernels.window_attention(x, x.to(dtype), x, 2, 2)


def test_mixed_dtypes_are_taken_as_autocast_takes_them():
    for name in CASES:
        # Of each case the same numbers: with these no choice of regions or blocks is so near that rounding turns it.
        torch.manual_seed(4)
        case = cases()[name]
        mixed = [x.float() if i % 2 else x.bfloat16() for i, x in enumerate(case.tensors.values())]
        with torch.autocast("cpu", torch.bfloat16):
            got = case.call(*mixed)
        want = case.call(*(x.bfloat16().double() for x in case.tensors.values()))
        assert got.dtype in (torch.bfloat16, torch.float32)
        torch.testing.assert_close(got.double(), want, rtol=0.05, atol=0.05 * want.abs().max().item())
