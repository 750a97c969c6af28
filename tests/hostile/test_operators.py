"""The public operators under random settings, layouts, dtypes and modes, and with arguments that are wrong."""

import contextlib
import random
import re
import traceback
from pathlib import Path

import campaign
import numpy as np
import operator_definitions
import pytest
import torch

from attnzoo import kernels

FOLDER = Path(kernels.__file__).parent
# Errors by these files are the operators' own.
CHECKS = ("_checks.py", "_dispatch.py", "operator.py", "windows.py", "generalized.py", "__init__.py")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Of the largest magnitude expected; 16-bit sums of softmaxes round at every step.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 3e-4, torch.float16: 0.03, torch.bfloat16: 0.12}
WRONG_DTYPES = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)


class Draw:
    """One operator, its arguments as they should be, and what is then done to them."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.triton = self.random.random() < 0.2
        self.dtype = self.random.choice(DTYPES)
        self.batch = self.random.choice((0, 1, 1, 2, 3))
        names = ("routing", "window", "neighborhood", "deformable", "lifted", "from_offsets")
        names += ("depthwise", "pointwise", "large_kernel")
        plain = ("generalized", "flash_bias", "block_sparse")
        name = self.random.choice(names + plain)
        self.has_kernels = name not in plain
        self.triton &= self.has_kernels
        self.tensors, self.settings = {}, {}
        self.operator = getattr(self, name)()

    def pick(self, *choices):
        return self.random.choice(choices)

    def normal(self, *shape):
        return torch.randn(shape, dtype=torch.float64).to(self.dtype)

    def size(self):
        largest = 5 if self.triton else 11
        return self.random.randint(1, largest), self.random.randint(1, largest)

    def heads(self):
        heads = self.pick(1, 2, 3)
        return heads, heads * self.pick(1, 2, 5, 8)

    def maps(self, height, width, channels):
        for name in ("q", "k", "v"):
            self.tensors[name] = self.normal(self.batch, height, width, channels)
        if self.random.random() < 0.3:
            self.tensors["bias_table"] = None
        self.settings["scale"] = self.pick(None, None, 0.0, -0.3, 1.5, 1, 1e-30)

    def routing(self):
        heads, channels = self.heads()
        rows, cols = self.pick((1, 1), (2, 2), (3, 2), (2, 5), (7, 7))
        self.maps(*self.size(), channels)
        self.tensors.pop("bias_table", None)
        topk = self.pick(1, self.random.randint(1, rows * cols), rows * cols)
        scale = self.settings["scale"]
        self.settings = dict(num_heads=heads, regions=(rows, cols), topk=topk, scale=0.5 if scale is None else scale)
        if self.random.random() < 0.5:
            return "routing_attention"
        self.tensors = {"qkv": torch.cat(list(self.tensors.values()), -1)}
        if self.random.random() < 0.5:
            self.tensors["local_weight"] = self.normal(channels, 1, self.pick(1, 3, 5), self.pick(1, 3, 7))
            self.tensors["local_bias"] = self.pick(None, self.normal(channels))
        return "routing_attention_packed"

    def window(self):
        heads, channels = self.heads()
        window = self.random.randint(1, 4), self.random.randint(1, 5)
        times = 2 if self.triton else 3
        height, width = window[0] * self.random.randint(1, times), window[1] * self.random.randint(1, times)
        self.maps(height, width, channels)
        overlap = self.pick(0, 0, 0, 2, 4)
        shift = (0, 0) if overlap else tuple(self.random.randrange(side) for side in window)
        rows = (2 * window[0] - 1 + overlap) * (2 * window[1] - 1 + overlap)
        self.tensors.setdefault("bias_table", self.normal(rows, heads))
        self.settings |= dict(num_heads=heads, window_size=window, shift=shift, overlap=overlap)
        if window[0] == window[1] and self.random.random() < 0.5:
            self.settings["window_size"] = window[0]
        if self.random.random() < 0.5:
            return "window_attention"
        maps = [self.tensors.pop(name) for name in ("q", "k", "v")]
        self.tensors["qkv"] = torch.cat(maps, -1)
        return "window_attention_packed"

    def neighborhood(self):
        heads, channels = self.heads()
        self.maps(*self.size(), channels)
        side = self.pick(3, 3, 5, 7, 15)
        self.tensors.setdefault("bias_table", self.normal(heads, 2 * side - 1, 2 * side - 1))
        self.settings |= dict(num_heads=heads, kernel_size=side, dilation=self.pick(1, 1, 2, 3, 20))
        if self.random.random() < 0.3:
            self.tensors["qkv"] = torch.cat([self.tensors.pop(name) for name in ("q", "k", "v")], 3)
            return "neighborhood_attention_packed"
        return "neighborhood_attention"

    def generalized(self):
        heads, channels = self.heads()
        self.maps(*self.size(), channels)
        sides = self.random.randint(1, 8), self.random.randint(1, 8)
        sides = (sides[0],) * 2 if self.random.random() < 0.5 else sides
        self.tensors.setdefault("bias_table", self.normal(heads, 2 * sides[0] - 1, 2 * sides[1] - 1))
        strides = tuple(self.random.randint(1, side) for side in sides)
        self.settings |= dict(num_heads=heads, kernel_size=sides, stride=strides)
        self.settings["dilation"] = self.pick(1, 1, (1, 2), (3, 1), 20)
        self.settings["is_causal"] = self.pick(False, False, True, (True, False), (False, True))
        if sides[0] == sides[1] and strides[0] == strides[1]:
            self.settings |= dict(kernel_size=sides[0], stride=strides[0])
        return "generalized_neighborhood_attention"

    def tokens(self):
        """Queries, keys and values; heads and how many queries and keys there are."""
        heads, channels = self.pick(1, 2, 3), self.pick(1, 2, 5, 8)
        counts = self.random.randint(1, 40), self.random.randint(1, 40)
        for name, count, width in (("q", 0, channels), ("k", 1, channels), ("v", 1, self.pick(channels, 3, 12))):
            self.tensors[name] = self.normal(self.batch, heads, counts[count], width)
        self.settings["scale"] = self.pick(None, None, 0.0, -0.3, 1.5, 1)
        return heads, counts

    def flash_bias(self):
        heads, counts = self.tokens()
        rank = self.pick(1, 2, 5, 16)
        for name, count in zip(("query_factor", "key_factor"), counts, strict=True):
            sides = (*self.pick((), (1,), (self.batch,)), self.pick(1, heads))
            self.tensors[name] = self.normal(*sides, count, rank)
        return "flash_bias_attention"

    def block_sparse(self):
        self.tokens()
        self.settings["block_size"] = self.pick(1, 4, (8, 3), (64, 5), (2, 100))
        self.settings["similarity"] = self.pick(-1, 0.1, 0.3, 0.6, 2.0)
        self.settings |= self.pick(dict(topk=0.5), dict(topk=0.2), dict(topk=1.0), dict(topk=None, cdf=0.6))
        return "block_sparse_attention"

    def deformable(self):
        heads, channels = self.pick(1, 2, 3), self.pick(1, 2, 5, 8)
        sizes = [self.size() for _ in range(self.pick(1, 2, 3))]
        order = list(range(len(sizes)))
        self.random.shuffle(order)
        starts, end = [0] * len(sizes), self.pick(0, 0, 2)
        for level in order:
            starts[level] = end
            end += sizes[level][0] * sizes[level][1]
        positions = end + self.pick(0, 0, 3)
        queries, points = self.pick(0, 1, 2, 5), self.pick(0, 1, 2, 3)
        samples = (self.batch, queries, heads, len(sizes), points)
        self.tensors = {
            "value": self.normal(self.batch, positions, heads, channels),
            "sampling_locations": (torch.rand(*samples, self.axes, dtype=torch.float64) * 1.4 - 0.2).to(self.dtype),
            "attention_weights": self.normal(*samples),
        }
        self.settings = dict(spatial_shapes=sizes, level_start_index=starts)
        if self.random.random() < 0.5:
            kind = self.pick(torch.int32, torch.int64)
            self.settings = {key: torch.tensor(x, dtype=kind) for key, x in self.settings.items()}
        return "deformable_attention"

    axes = 2

    def lifted(self):
        self.axes = 3
        self.deformable()
        batch, positions, heads, _ = self.tensors["value"].shape
        spread = torch.rand(batch, positions, self.pick(1, heads), self.pick(1, 2, 4), dtype=torch.float64)
        self.tensors["depth"] = spread.to(self.dtype)
        return "deformable_attention_3d"

    def from_offsets(self):
        self.deformable()
        samples = self.tensors["attention_weights"].shape
        references = *samples[:2], samples[3], self.pick(2, 4)
        self.tensors = {
            "value": self.tensors["value"],
            "reference_points": torch.rand(references, dtype=torch.float64).to(self.dtype),
            "sampling_offsets": self.normal(*samples, 2),
            "attention_logits": self.normal(*samples),
        }
        return "deformable_attention_from_offsets"

    def depthwise(self):
        channels = self.pick(1, 3, 8)
        self.tensors = {
            "x": self.normal(self.batch, channels, *self.size()),
            "weight": self.normal(channels, 1, self.pick(1, 3, 5, 9), self.pick(1, 3, 7)),
            "bias": self.pick(None, self.normal(channels)),
        }
        self.settings = dict(dilation=self.pick(1, 1, 2, 3, 12))
        return "depthwise_conv"

    def pointwise(self):
        channels, outputs = self.pick(1, 3, 8), self.pick(1, 2, 7)
        height, width = self.size()
        self.tensors = {
            "x": self.normal(self.batch, channels, height, width),
            "weight": self.normal(outputs, channels, 1, 1),
            "bias": self.pick(None, self.normal(outputs)),
            "gate": self.pick(None, self.normal(self.batch, outputs, height, width)),
        }
        return "pointwise_conv"

    def large_kernel(self):
        channels = self.pick(1, 3, 8)
        self.tensors = {"x": self.normal(self.batch, channels, *self.size())}
        for name in ("local", "dilated"):
            side = self.pick(1, 3, 5)
            self.tensors[f"{name}_weight"] = self.normal(channels, 1, side, side) / side
            self.tensors[f"{name}_bias"] = self.pick(None, self.normal(channels))
        self.tensors["pointwise_weight"] = self.normal(channels, channels, 1, 1)
        self.tensors["pointwise_bias"] = self.pick(None, self.normal(channels))
        self.settings = dict(dilation=self.pick(1, 2, 3))
        return "large_kernel_attention"

    def laid_out(self, x):
        """The same numbers in another layout; an expanded one repeats its first."""
        how = self.pick("plain", "plain", "transposed", "sliced", "channels_last", "expanded", "offset")
        if how == "transposed" and x.dim() > 1:
            a, b = self.random.sample(range(x.dim()), 2)
            return x.transpose(a, b).contiguous().transpose(a, b)
        if how == "sliced":
            wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"))
            wide[..., 1::2] = x
            return wide[..., 1::2]
        if how == "channels_last" and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        if how == "expanded" and x.numel() > 0:
            axis = self.random.randrange(x.dim())
            return x.narrow(axis, 0, 1).expand(x.shape)
        if how == "offset":
            return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
        return x

    def spoil(self):
        """Makes one argument wrong, or at least odd."""
        name = self.random.choice([*self.tensors, *self.settings])
        if name in self.tensors and self.tensors[name] is not None:
            x = self.tensors[name]
            axis = self.random.randrange(x.dim())
            changed = self.random.choice(
                (
                    lambda: None,
                    lambda: x.tolist(),
                    lambda: np.zeros(tuple(x.shape)),
                    lambda: "tensor",
                    lambda: x.to("meta"),
                    lambda: x.to_sparse(),
                    lambda: x.to(self.random.choice(WRONG_DTYPES)),
                    lambda: x.to(self.random.choice(DTYPES)),
                    lambda: x[None],
                    lambda: x.select(axis, 0) if x.shape[axis] else x.flatten(),
                    lambda: torch.cat([x, x], axis),
                    lambda: x.narrow(axis, 0, x.shape[axis] // 2),
                    lambda: x.narrow(axis, 0, 0),
                    lambda: x.narrow(axis, 0, 1) if x.shape[axis] else x,
                    lambda: x.transpose(axis, 0),
                    lambda: torch.cat([x, x.narrow(axis, 0, 1)], axis) if x.shape[axis] else x,
                    lambda: x.new_zeros(()),
                )
            )
            self.tensors[name] = changed()
        elif name in self.tensors:
            self.tensors[name] = self.normal(3)
        else:
            value = self.settings[name]
            self.settings[name] = self.random.choice(
                (
                    -1,
                    0,
                    4,
                    2**40,
                    -(2**70),
                    2.0,
                    float("nan"),
                    float("inf"),
                    True,
                    "1",
                    None,
                    (),
                    (0, 0),
                    (3, 3),
                    (1, 2, 3),
                    (2, 1.5),
                    [value],
                    [[2, 2]],
                    [[-2, -2], [2, 2]],
                    torch.zeros(2),
                    torch.ones(2, 2).long(),
                    torch.tensor(2),
                )
            )


def expected(draw, tensors):
    """The definition on these tensors, levels in plain numbers."""
    settings = {key: x.tolist() if isinstance(x, torch.Tensor) else x for key, x in draw.settings.items()}
    return getattr(operator_definitions, draw.operator)(**tensors, **settings)


def is_near(got, want, tolerance):
    if got.shape != want.shape:
        return False
    if want.numel() == 0:
        return True
    return bool((got.double() - want).abs().max() <= tolerance * (want.abs().max() + 0.1))


def has_kink(draw, tensors):
    """Whether a sample stands so near a pixel's centre, where slopes jump, that rounding may choose the side."""
    if not draw.operator.startswith("deformable"):
        return False
    near = False
    sides = [tuple(size) for size in torch.as_tensor(draw.settings["spatial_shapes"]).tolist()]
    for level, (height, width) in enumerate(sides):
        counts = torch.tensor([width, height] + ([tensors["depth"].shape[3]] if "depth" in tensors else []))
        if "sampling_locations" in tensors:
            places = tensors["sampling_locations"][:, :, :, level].detach()
        else:
            reference, offsets = tensors["reference_points"][:, :, None, level, None], tensors["sampling_offsets"]
            # Pixels, or shares of half a box.
            step = 1 / counts if reference.shape[-1] == 2 else reference[..., 2:] / 2 / offsets.shape[4]
            places = (reference[..., :2] + offsets[:, :, :, level] * step).detach()
        places = places * counts - 0.5
        near |= bool(((places - places.round()).abs() < 1e-3).any())
    return near


def refusal(error):
    """A few words if an error is a clear one of the operators' own; else it is raised again."""
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    said = str(error)
    names = r"\b(q|k|v|qkv|num_heads|regions|topk|scale|window_size|shift|overlap|bias_table|kernel_size|dilation|value"
    names += r"|depth|stride|is_causal|query_factor|key_factor|block_size|similarity|topk|cdf|q, k and v"
    names += r"|spatial_shapes|level_start_index|levels?|sampling_locations|attention_weights|x|gate|H and W"
    names += r"|reference_points|sampling_offsets|attention_logits"
    names += r"|(local_|dilated_|pointwise_)?(weight|bias))\b"
    clear = (
        isinstance(error, (TypeError, ValueError))
        and re.search(names, said)
        and re.search(r"\bgot\b|\bhas\b|overlap|fit", said)
    )
    if isinstance(error, RuntimeError) and re.match(
        r"\w+: Triton cannot run: .*; backend='auto' or 'torch' would", said
    ):
        return "Triton cannot run"
    if clear and where.parent.is_relative_to(FOLDER) and where.name in CHECKS and "\n" not in said:
        return "refused"
    raise error


def draw_one(seed):
    draw = Draw(seed)
    spoilt = draw.random.random() < 0.4
    if draw.random.random() < 0.15:
        # As autocast meets them: of several dtypes.
        for key, x in draw.tensors.items():
            if x is not None and draw.random.random() < 0.5:
                draw.tensors[key] = x.to(draw.random.choice((torch.float32, torch.bfloat16)))
    autocast = draw.random.random() < 0.15
    draw.tensors = {key: None if x is None else draw.laid_out(x) for key, x in draw.tensors.items()}
    if spoilt:
        draw.spoil()
    infinite = not spoilt and draw.random.random() < 0.1
    if infinite:
        name = draw.random.choice([key for key, x in draw.tensors.items() if x is not None])
        x = draw.tensors[name].clone()
        if x.numel() > 0:
            x.flatten()[draw.random.randrange(x.numel())] = draw.random.choice(
                (float("nan"), float("inf"), -float("inf"))
            )
        draw.tensors[name] = x
    mode = draw.random.choice(("inference", "no_grad", "grad", "grad"))
    learning = mode == "grad"
    tensors = {}
    for key, x in draw.tensors.items():
        floats = isinstance(x, torch.Tensor) and x.is_floating_point() and x.layout == torch.strided
        learns = learning and floats and (draw.random.random() < 0.8)
        tensors[key] = x.detach().requires_grad_() if learns else x
    mixed = len({x.dtype for x in tensors.values() if isinstance(x, torch.Tensor)}) > 1
    backend = "triton" if draw.triton else draw.random.choice(("auto", "torch"))
    operator = getattr(kernels, draw.operator)
    contexts = contextlib.ExitStack()
    with contexts:
        if autocast:
            contexts.enter_context(torch.autocast("cpu", torch.bfloat16))
        if not learning:
            contexts.enter_context(torch.inference_mode() if mode == "inference" else torch.no_grad())
        runs = draw.has_kernels and kernels.can_run(draw.operator, **tensors, **draw.settings)
        choice = {"backend": backend} if draw.has_kernels else {}
        try:
            out = operator(**tensors, **draw.settings, **choice)
        except (TypeError, ValueError, RuntimeError) as error:
            outcome = refusal(error)
            # Under autocast 16 bits stand in for float32, which the interpreter does not multiply.
            if outcome == "refused" and not (spoilt or mixed):
                raise
            if runs and draw.operator != "large_kernel_attention":
                raise AssertionError(f"can_run says yes, the operator says {error}") from error
            return outcome
    return judged(draw, tensors, out, infinite, autocast or mixed)


def judged(draw, tensors, out, infinite, coarse):
    """The outcome of a call that was not refused; raises where its numbers are wrong."""
    if any(isinstance(x, torch.Tensor) and x.device.type == "meta" for x in tensors.values()):
        return "meta"
    if infinite:
        # Other numbers than these have their own tests: here all that counts is that nothing breaks.
        if out.requires_grad:
            out.sum().backward()
        return "infinite"
    dtypes = [x.dtype for x in tensors.values() if x is not None]
    tolerance = max(TOLERANCES[x] for x in dtypes)
    tolerance = max(tolerance, TOLERANCES[torch.bfloat16]) if coarse else tolerance
    exact = {key: None if x is None else x.detach().double() for key, x in tensors.items()}
    for key, x in exact.items():
        if x is not None and tensors[key].requires_grad:
            x.requires_grad_()
    if draw.operator.startswith("routing_attention"):
        q, k = exact["qkv"].chunk(3, -1)[:2] if "qkv" in exact else (exact["q"], exact["k"])
        margin = operator_definitions.routing_margin(q, k, draw.settings["regions"], draw.settings["topk"])
        if margin < (tolerance if coarse else 1e-4):
            return "tie"
    if draw.operator == "block_sparse_attention":
        given = {key: draw.settings.get(key) for key in ("block_size", "similarity", "topk", "cdf", "scale")}
        if operator_definitions.block_sparse_margin(exact["q"], exact["k"], **given) < (tolerance if coarse else 1e-4):
            return "tie"
    want = expected(draw, exact)
    if not is_near(out, want, tolerance):
        raise AssertionError(f"{draw.operator} is wrong by {_error(out, want)} above {tolerance}")
    if out.requires_grad:
        grad = torch.randn_like(want)
        learning = [key for key, x in tensors.items() if x is not None and x.requires_grad]
        got = torch.autograd.grad(out, [tensors[key] for key in learning], grad.to(out.dtype))
        wanted = torch.autograd.grad(
            want, [exact[key] for key in learning], grad, allow_unused=True, materialize_grads=True
        )
        for key, ours, theirs in zip(learning, got, wanted, strict=True):
            if key in ("sampling_locations", "sampling_offsets", "reference_points") and has_kink(draw, exact):
                continue
            if ours.dtype != tensors[key].dtype:
                raise AssertionError(f"the gradient of {key} is {ours.dtype}, it is {tensors[key].dtype}")
            if not is_near(ours, theirs, 2 * tolerance):
                raise AssertionError(f"{draw.operator}: the gradient of {key} is wrong by {_error(ours, theirs)}")
    return "right"


def _error(got, want):
    if got.shape != want.shape:
        return f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    return f"{(got.double() - want).abs().max().item():.2e} of {want.abs().max().item():.2e}"


@pytest.mark.long
def test_operators():
    campaign.in_own_interpreter(__file__)


@pytest.mark.parametrize("name", [name for name in kernels.__all__ if name not in ("can_run", "use_backend")])
def test_definitions_exist(name):
    assert callable(getattr(operator_definitions, name))


if __name__ == "__main__":
    torch.set_num_threads(1)
    campaign.campaign("operators", draw_one, 2500)
