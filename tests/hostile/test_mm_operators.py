"""The operators that stand in for mmcv's, through `mmcv.ops`: right values, or one clear refusal, whatever comes.

Each maker draws arguments that fit and says, for any arguments, what the result must be; for those that do not fit it
raises. Most draws then spoil one argument.
"""

import math
import random
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import interpreters
import mmcv
import pytest
import torch
import torch.nn.functional as F
import torchvision
from campaign import Failed, campaign, in_own_interpreter
from torch import Tensor

import attnzoo
from attnzoo.heads.mm import ops as stand_in

stand_in.install()

from mmcv import ops  # noqa: E402

Case = tuple[Callable[..., Any], list, Callable[..., Any]]
HOUSES = (Path(attnzoo.__file__).parent, Path(mmcv.__file__).parent)


def fits(*conditions: object) -> None:
    if not all(conditions):
        raise ValueError


def whole(*values: object, least: int = 0) -> None:
    fits(*(isinstance(value, int) and value >= least for value in values))


def floating(*tensors: Tensor) -> None:
    fits(*(tensor.is_floating_point() for tensor in tensors))


def boxes_of(draw: random.Random, count: int) -> Tensor:
    corners = [(draw.uniform(-5, 30), draw.uniform(-5, 30)) for _ in range(count)]
    return torch.tensor([(x, y, x + draw.uniform(1, 20), y + draw.uniform(1, 20)) for x, y in corners]).reshape(-1, 4)


def overlap(a: list[float], b: list[float], offset: int) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset) for i in (0, 1))
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def nms(draw: random.Random) -> Case:
    count = draw.choice((0, 1, 7, 20))

    def truth(boxes, scores, threshold, offset):
        floating(boxes, scores)
        fits(boxes.dim() == 2, boxes.shape[1] == 4, scores.shape == (len(boxes),), offset in (0, 1))
        fits(not boxes.isnan().any(), not scores.isnan().any(), math.isfinite(float(threshold)))
        threshold = float(threshold)
        kept: list[int] = []
        for i in scores.argsort(descending=True, stable=True).tolist():
            if all(overlap(boxes[j].tolist(), boxes[i].tolist(), offset) <= threshold for j in kept):
                kept.append(i)
        return torch.tensor(kept, dtype=torch.int64)

    scores = torch.tensor(draw.sample(range(100), count)) / 100
    return lambda *args: ops.nms(*args)[1], [boxes_of(draw, count), scores, 0.45, draw.choice((0, 1))], truth


def by_place(dets: Tensor) -> Tensor:
    """Rows in an order that does not depend on equal scores."""
    return dets[dets[:, 0].argsort()]


def soft_nms(draw: random.Random) -> Case:
    count = draw.choice((0, 1, 12))

    def truth(boxes, scores, threshold, sigma, min_score, method, offset):
        floating(boxes, scores)
        fits(boxes.dim() == 2, boxes.shape[1] == 4, scores.shape == (len(boxes),), offset in (0, 1))
        fits(not boxes.isnan().any(), not scores.isnan().any(), method in ("naive", "linear", "gaussian"))
        threshold, sigma, min_score = map(float, (threshold, sigma, min_score))
        fits(math.isfinite(threshold), math.isfinite(min_score), math.isfinite(sigma), sigma > 0)
        rest = dict(enumerate(scores.tolist()))
        kept = []
        while rest:
            best = max(rest, key=lambda i: rest[i])
            kept.append([*boxes[best].tolist(), rest.pop(best)])
            for i in list(rest):
                shared = overlap(boxes[best].tolist(), boxes[i].tolist(), offset)
                linear = {"linear": 1 - shared, "naive": 0.0}.get(method, 1.0) if shared >= threshold else 1.0
                rest[i] *= math.exp(-(shared**2) / sigma) if method == "gaussian" else linear
                if rest[i] < min_score:
                    del rest[i]
        return by_place(torch.tensor(kept).reshape(-1, 5))

    scores = torch.tensor(draw.sample(range(1, 100), count)) / 100
    method = draw.choice(("naive", "linear", "gaussian"))
    numbers = [draw.choice((0.2, 0.5)), 0.5, 0.05, method, draw.choice((0, 1))]
    return lambda *args: by_place(ops.soft_nms(*args)[0]), [boxes_of(draw, count), scores, *numbers], truth


def nms_match(draw: random.Random) -> Case:
    def truth(dets, threshold):
        if len(dets) == 0:
            return torch.zeros(0)
        floating(dets)
        fits(dets.dim() == 2, dets.shape[1] == 5, not dets.isnan().any(), math.isfinite(float(threshold)))
        threshold = float(threshold)
        rest, owner = dets[:, 4].argsort(descending=True, stable=True).tolist(), [0.0] * len(dets)
        while rest:
            head = rest.pop(0)
            group = [i for i in rest if overlap(dets[head].tolist(), dets[i].tolist(), 0) >= threshold]
            for i in (head, *group):
                owner[i] = head
            rest = [i for i in rest if i not in group]
        return torch.tensor(owner)

    def function(dets, threshold):
        owner = torch.zeros(len(dets))
        for group in ops.nms_match(dets, threshold):
            owner[group] = float(group[0])
        return owner

    count = draw.choice((0, 1, 10))
    scores = torch.tensor(draw.sample(range(100), count)).reshape(-1, 1) / 100
    return function, [torch.cat((boxes_of(draw, count), scores), 1), 0.45], truth


def regions_fit(features: Tensor, rois: Tensor, size: Any, scale: float) -> tuple[int, int]:
    floating(features, rois)
    pair = size if isinstance(size, tuple) else (size, size)
    whole(*pair, least=1)
    fits(features.dim() == 4, rois.dim() == 2, rois.shape[1] == 5, math.isfinite(scale), scale > 0)
    fits(rois.isfinite().all(), (rois[:, 0] == rois[:, 0].floor()).all(), (rois[:, 0] >= 0).all())
    fits((rois[:, 0] < len(features)).all(), features.shape[2] * features.shape[3] or not len(rois))
    return pair


def bilinear(plane: Tensor, y: float, x: float) -> float:
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    return float(
        (plane[top, left] * (1 - dx) + plane[top, right] * dx) * (1 - dy)
        + (plane[bottom, left] * (1 - dx) + plane[bottom, right] * dx) * dy
    )


def regions(draw: random.Random, images: int) -> Tensor:
    rows = [[draw.randrange(images), *box] for box in boxes_of(draw, draw.choice((0, 1, 3))).tolist()]
    return torch.tensor(rows).reshape(-1, 5)


def roi_align(draw: random.Random) -> Case:
    def truth(features, rois, size, scale, ratio, mode, aligned):
        rows, columns = regions_fit(features, rois, size, scale)
        whole(ratio, least=-1)
        fits(mode in ("avg", "max"))
        output = torch.zeros(len(rois), features.shape[1], rows, columns)
        if not output.numel():
            return output
        for place in torch.cartesian_prod(*(torch.arange(n) for n in output.shape)).tolist():
            index, x1, y1, x2, y2 = rois[place[0]].tolist()
            plane = features[int(index), place[1]]
            shift = 0.5 if aligned else 0.0
            sides = [(low * scale - shift, high * scale - shift) for low, high in ((y1, y2), (x1, x2))]
            lengths = [high - low if aligned else max(high - low, 1.0) for low, high in sides]
            steps = [length / bins for length, bins in zip(lengths, (rows, columns), strict=True)]
            grid = [ratio if ratio > 0 else max(math.ceil(step), 1) for step in steps]
            # What is drawn has far less, what spoils it far more.
            fits(math.prod(grid) * rows * columns < 1e6)
            samples = [
                bilinear(plane, *(sides[a][0] + (place[2 + a] + (at[a] + 0.5) / grid[a]) * steps[a] for a in (0, 1)))
                for at in ((i, j) for i in range(grid[0]) for j in range(grid[1]))
            ]
            output[tuple(place)] = max(samples) if mode == "max" else sum(samples) / len(samples)
        return output

    features = torch.randn(draw.choice((1, 2)), draw.choice((1, 2)), draw.choice((1, 5)), 6)
    size = draw.choice((1, 2, (1, 3)))
    numbers = [size, draw.choice((0.25, 0.5)), draw.choice((0, 2)), draw.choice(("avg", "max")), draw.random() < 0.5]
    return ops.roi_align, [features, regions(draw, len(features)), *numbers], truth


def roi_pool(draw: random.Random) -> Case:
    def truth(features, rois, size, scale):
        rows, columns = regions_fit(features, rois, size, scale)
        output = torch.zeros(len(rois), features.shape[1], rows, columns)
        if not output.numel():
            return output
        for r, (index, x1, y1, x2, y2) in enumerate(rois.tolist()):
            edges: list[list[tuple[int, int]]] = []
            if x2 + 1 <= x1 or y2 + 1 <= y1:
                continue
            for low, high, bins, limit in ((y1, y2, rows, features.shape[2]), (x1, x2, columns, features.shape[3])):
                start, length = low * scale, (high + 1) * scale - low * scale
                ends = [start + length / bins * i for i in range(bins + 1)]
                edges.append([(max(math.floor(a), 0), min(math.ceil(b), limit)) for a, b in pairwise(ends)])
            for i, (top, bottom) in enumerate(edges[0]):
                for j, (left, right) in enumerate(edges[1]):
                    if top < bottom and left < right:
                        output[r, :, i, j] = features[int(index), :, top:bottom, left:right].amax((1, 2))
        return output

    features = torch.randn(draw.choice((1, 2)), draw.choice((1, 3)), 5, draw.choice((1, 6)))
    return ops.roi_pool, [features, regions(draw, len(features)), draw.choice((1, 2, (2, 1))), 0.5], truth


def convolved(x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups) -> Tensor:
    """torchvision's operator, and NaN where an offset is not finite."""
    fits(isinstance(x, Tensor), x.dim() == 4, weight.dim() == 4, len(x) > 0)
    floating(offset)  # to whose dtype mmcv brings the others
    whole(stride, dilation, groups, offset_groups, least=1)
    whole(padding)
    size = F.conv2d(x.double(), weight.double(), None, stride, padding, dilation, groups).shape[2:]
    taps = offset_groups * weight.shape[2] * weight.shape[3]
    fits(x.shape[1] % offset_groups == 0, bias is None or bias.shape == (len(weight),))
    read = []
    for points, count in ((offset, 2 * taps), (mask, taps)):
        if points is not None:
            # Larger maps are read as memory.
            fits(points.dim() == 4, points.shape[:2] == (len(x), count), points[0, 0].numel() >= math.prod(size))
            read.append(points.double().flatten(1)[:, : count * math.prod(size)].reshape(len(x), count, *size))
    tensors = [x.double(), read[0].nan_to_num(0, 0, 0), weight.double(), None if bias is None else bias.double()]
    output = torchvision.ops.deform_conv2d(*tensors, stride, padding, dilation, *read[1:])
    return output + (read[0] * 0).sum(1, keepdim=True)


def convolution(draw: random.Random) -> tuple[list, list, int]:
    groups, offset_groups = draw.choice((1, 2)), draw.choice((1, 2))
    side, stride, padding, dilation = draw.choice((1, 3)), draw.choice((1, 2)), draw.choice((0, 1)), draw.choice((1, 2))
    x, weight = torch.randn(draw.choice((1, 2)), 4, 7, 9), torch.randn(6, 4 // groups, side, side)
    size = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
    offset = torch.randn(len(x), 2 * offset_groups * side**2, *size) * draw.choice((0, 1, 5))
    if draw.random() < 0.3:
        worst = draw.choice((math.nan, math.inf, -math.inf, 1e30, -1e30))
        offset.view(-1)[draw.randrange(offset.numel())] = worst
    return [x, offset, weight], [stride, padding, dilation, groups, offset_groups], offset_groups * side**2


def deform_conv(draw: random.Random) -> Case:
    tensors, numbers, _ = convolution(draw)

    def truth(x, offset, weight, *geometry):
        return convolved(x, offset, None, weight, None, *geometry)

    return ops.deform_conv2d, [*tensors, *numbers], truth


def modulated_deform_conv(draw: random.Random) -> Case:
    (x, offset, weight), numbers, taps = convolution(draw)
    mask = torch.rand(len(x), taps, *offset.shape[2:])
    bias = torch.randn(len(weight)) if draw.random() < 0.5 else None
    return ops.modulated_deform_conv2d, [x, offset, mask, weight, bias, *numbers], convolved


def carafe(draw: random.Random) -> Case:
    def truth(features, masks, kernel, groups, scale):
        floating(features, masks)
        whole(kernel, groups, scale, least=1)
        batch, channels, height, width = features.shape
        fits(kernel % 2, channels % groups == 0)
        fits(masks.shape == (batch, groups * kernel**2, height * scale, width * scale))
        if not channels:
            return torch.zeros(batch, 0, height * scale, width * scale)
        patches = F.unfold(features, kernel, padding=kernel // 2).view(batch, channels, kernel**2, height, width)
        patches = patches.repeat_interleave(scale, 3).repeat_interleave(scale, 4).unflatten(1, (groups, -1))
        weights = masks.view(batch, groups, 1, kernel**2, height * scale, width * scale)
        return (patches * weights).sum(3).flatten(1, 2)

    kernel, groups, scale = draw.choice((1, 3)), draw.choice((1, 2)), draw.choice((1, 2, 3))
    features = torch.randn(draw.choice((1, 2)), 4, 3, 5)
    masks = torch.rand(len(features), groups * kernel**2, 3 * scale, 5 * scale)
    return draw.choice((ops.carafe, ops.carafe_naive)), [features, masks, kernel, groups, scale], truth


def masked_conv(draw: random.Random) -> Case:
    def truth(features, mask, weight, bias, padding, stride):
        floating(features, weight, bias)
        whole(padding)
        fits(weight.is_contiguous())  # mmcv takes a view of it
        fits(stride == 1, features.shape[0] == 1, mask.dim() == 3, len(mask) == 1, not mask.is_complex())
        fits(mask.shape[1:] == features.shape[2:], bias.shape == (len(weight),))
        output = F.conv2d(features, weight, bias, 1, padding)
        rows, columns = (mask[0] > 0).nonzero().unbind(1)
        fits(output.numel(), (rows < output.shape[2]).all(), (columns < output.shape[3]).all())
        chosen = torch.zeros_like(output)
        chosen[:, :, rows, columns] = output[:, :, rows, columns]
        return chosen

    side = draw.choice((1, 3))
    mask = (torch.rand(1, 6, 7) < 0.3).float()
    tensors = [torch.randn(1, 2, 6, 7), mask, torch.randn(3, 2, side, side), torch.randn(3)]
    return ops.masked_conv2d, [*tensors, draw.choice((side // 2, side // 2, 0, 2)), 1], truth


def psa_mask(draw: random.Random) -> Case:
    def truth(x, kind, size):
        floating(x)
        fits(kind in (0, 1))
        rows, columns = size if isinstance(size, tuple) else (size, size)
        whole(rows, columns, least=1)
        batch, channels, height, width = x.shape
        fits(channels == rows * columns)
        output = torch.zeros(batch, height, width, height, width)
        for y in range(height):
            for x_ in range(width):
                for i in range(rows):
                    for j in range(columns):
                        other = (y + i - (rows - 1) // 2, x_ + j - (columns - 1) // 2)
                        if 0 <= other[0] < height and 0 <= other[1] < width:
                            place = (*other, y, x_) if kind == 0 else (y, x_, *other)
                            output[(slice(None), *place)] = x[:, i * columns + j, y, x_]
        return output.view(batch, height * width, height, width)

    size = draw.choice((1, (3, 5), (7, 7), (2, 3)))
    channels = size**2 if isinstance(size, int) else math.prod(size)
    return (
        ops.PSAMask.forward.__globals__["psa_mask"],
        [torch.randn(draw.choice((1, 2)), channels, 3, 4), draw.choice((0, 1)), size],
        truth,
    )


def focal(draw: random.Random) -> Case:
    softmax = draw.random() < 0.5

    def truth(logits, target, gamma, alpha, weight, reduction):
        floating(logits, *(() if weight is None else (weight,)))
        fits(logits.dim() == 2, target.dtype == torch.int64, target.shape == (len(logits),))
        fits(reduction in ("none", "sum"))
        gamma, alpha = float(gamma), float(alpha)
        fits(math.isfinite(gamma), math.isfinite(alpha), gamma >= 0, alpha >= 0)
        classes = logits.shape[1]
        fits(weight is None or weight.shape == (classes,), not softmax or (classes and (target < classes).all()))
        known = (target >= 0) & (target < classes)
        factor = torch.ones(len(logits)) if weight is None else weight[target.clamp(0, classes - 1)].where(known, 1)
        if softmax:
            p = logits.softmax(1)[torch.arange(len(logits)), target.clamp_min(0)]
            loss = torch.where(known, -alpha * (1 - p) ** gamma * p.log() * factor, p * 0)
            return loss if reduction == "none" else loss.sum()
        p, positive = logits.sigmoid(), target[:, None] == torch.arange(classes)
        loss = torch.where(positive, -alpha * (1 - p) ** gamma * p.log(), (alpha - 1) * p**gamma * (1 - p).log())
        loss = loss * factor[:, None]
        return loss if reduction == "none" else loss.sum()

    rows, classes = draw.choice((0, 1, 5)), draw.choice((1, 4))
    target = torch.tensor([draw.randrange(-1, classes + (not softmax)) for _ in range(rows)], dtype=torch.int64)
    weight = torch.rand(classes) if draw.random() < 0.5 else None
    numbers = [draw.choice((0.0, 2.0)), 0.25, weight, draw.choice(("none", "sum"))]
    function = ops.softmax_focal_loss if softmax else ops.sigmoid_focal_loss
    return function, [torch.randn(rows, classes), target, *numbers], truth


def deformable_attention(draw: random.Random) -> Case:
    def truth(value, shapes, starts, places, weights, step):
        floating(value)  # to whose dtype mmcv brings places and weights
        fits(
            not any(t.is_floating_point() or t.is_complex() for t in (shapes, starts)),
            (shapes > 0).all(),
            starts.dim() == 1,
        )
        shapes = shapes.long()
        batch, positions, heads, _ = value.shape
        fits(places.shape[::4] == (batch, weights.shape[4]), weights.shape == places.shape[:5], places.shape[5] == 2)
        fits(places.shape[2:4] == (heads, len(shapes)), len(starts) == len(shapes))
        areas = (shapes[:, 0] * shapes[:, 1]).tolist()
        fits(starts.tolist() == [sum(areas[:i]) for i in range(len(areas))], sum(areas) <= positions)
        value = value[:, : sum(areas)]
        if not value.shape[3]:
            return torch.zeros(batch, places.shape[1], 0)
        plain = ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch
        return plain(value.double(), shapes, places.to(value.dtype).double(), weights.to(value.dtype).double())

    shapes = torch.tensor([(3, 4), (2, 2)][: draw.choice((1, 2))])
    areas = (shapes[:, 0] * shapes[:, 1]).tolist()
    starts = torch.tensor([sum(areas[:i]) for i in range(len(areas))])
    queries = draw.choice((0, 1, 5))
    value, places = torch.randn(2, sum(areas), 2, 4), torch.rand(2, queries, 2, len(shapes), 3, 2) * 1.4 - 0.2
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    return function, [value, shapes, starts, places, torch.rand(2, queries, 2, len(shapes), 3), 64], truth


MAKERS = (nms, soft_nms, nms_match, roi_align, roi_pool, deform_conv, modulated_deform_conv, carafe, masked_conv,
          psa_mask, focal, deformable_attention)  # fmt: skip


# mmcv's CARAFE has a gradient on GPUs alone, its masked convolution none.
LEARNS = (roi_align, roi_pool, deform_conv, modulated_deform_conv, psa_mask, focal, deformable_attention)


POOLS = (roi_align, roi_pool, deform_conv, modulated_deform_conv, deformable_attention)


def spoiled_tensor(draw: random.Random, tensor: Tensor) -> Tensor:
    dim = draw.randrange(max(tensor.dim(), 1))
    spoil = draw.choice(("row", "dim", "short", "long", "empty", "dtype", "strides", "values"))
    if spoil == "row" and tensor.dim() and len(tensor):
        return tensor[0]
    if spoil == "dim":
        return tensor[None]
    if spoil == "short" and tensor.shape[dim]:
        return tensor.narrow(dim, 0, tensor.shape[dim] - 1)
    if spoil == "long":
        return torch.cat((tensor, tensor.narrow(dim, 0, min(tensor.shape[dim], 1))), dim)
    if spoil == "empty":
        return tensor.narrow(dim, 0, 0)
    if spoil == "dtype":
        others = (torch.int64, torch.bool) if tensor.is_floating_point() else (torch.float32, torch.float64)
        return tensor.to(draw.choice((*others, torch.complex64, torch.int32)))
    if spoil == "strides":
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.repeat_interleave(2)[::2]
    if tensor.numel() and tensor.dtype in (torch.float32, torch.int64):
        tensor = tensor.clone()
        worst = (-7, -1, 10**6, 2**40) if tensor.dtype == torch.int64 else (math.nan, math.inf, -1.0, 1e9, 0.5)
        tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice(worst)
    return tensor


def spoiled(draw: random.Random, args: list) -> list:
    index = draw.choice([i for i, arg in enumerate(args) if arg is not None])
    if isinstance(args[index], Tensor):
        new = spoiled_tensor(draw, args[index])
    elif isinstance(args[index], bool):
        new = not args[index]
    else:
        new = draw.choice((0, -1, 2, 2.5, 10**9, math.nan, math.inf, "2", None))
    return [*args[:index], new, *args[index + 1 :]]


def check_refusal(error: Exception) -> None:
    """What mmcv says itself is mmcv's; what comes out of attnzoo must be made to be read."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    houses = [house for name in frames for house in HOUSES if Path(name).resolve().is_relative_to(house.resolve())]
    text = str(error)
    clear = type(error) in (TypeError, ValueError) and text and "\n" not in text and len(text) < 300
    if houses[-1] == HOUSES[0] and not clear:
        raise Failed(f"no clear refusal: {type(error).__name__}: {error}") from error


def describe(args: list) -> str:
    return ", ".join(f"{tuple(a.shape)} {a.dtype}" if isinstance(a, Tensor) else repr(a) for a in args)


def draw_operator(seed: int) -> str:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    maker = MAKERS[seed % len(MAKERS)]
    function, args, truth = maker(draw)
    if draw.random() < 0.75:
        args = spoiled(draw, args)
    here = f"{maker.__name__}({describe(args)})"
    try:
        expected = truth(*args)
    except Exception:
        expected = None
    learns = isinstance(args[0], Tensor) and args[0].dtype == torch.float32 and maker in LEARNS
    if learns:
        args[0] = args[0].detach().requires_grad_()
    try:
        got = function(*args)
    except Exception as error:
        if expected is not None:
            raise Failed(f"{here} refused: {type(error).__name__}: {error}") from error
        check_refusal(error)
        return "refused"
    if expected is None:
        raise Failed(f"{here} accepted")
    if got.shape != expected.shape:
        raise Failed(f"{here} has the shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    if maker in POOLS and not args[0].isfinite().all():
        return "right shape"  # a weight of 0 times infinity is NaN, and whether there is one is a matter of rounding
    torch.testing.assert_close(
        got.detach().double(),
        expected.detach().double(),
        rtol=1e-3,
        atol=1e-4,
        equal_nan=True,
        msg=lambda m: f"{here}: {m}",
    )
    # mmcv's gradient of the unreduced softmax focal loss is broken.
    if learns and got.requires_grad and not (maker is focal and args[-1] == "none"):
        got.sum().backward()
        if args[0].grad is not None and expected.isfinite().all() and not args[0].grad.isfinite().all():
            raise Failed(f"{here}: the gradient is not finite")
    return "right"


@pytest.mark.long
def test_operators():
    in_own_interpreter(__file__, interpreters.TRAINING)


if __name__ == "__main__":
    torch.set_num_threads(1)
    campaign("operators of mmcv", draw_operator, 800, seconds=30)
