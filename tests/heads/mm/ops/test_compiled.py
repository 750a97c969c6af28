"""mmcv's operators under `torch.compile`: as without it for every size, and checked before memory is read."""

import mmcv.ops
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

REGIONS = torch.tensor([[0, 0, 0, 3, 3.0], [1, 1, 1, 2, 3]])


def image(n, channels=4):
    return torch.randn(2, channels, n + 4, n + 5, requires_grad=True)


CASES = {
    "roi_align": (
        lambda x, rois: mmcv.ops.roi_align(x, rois, (2, 2), 1.0, 2, "avg", True),
        lambda n: (image(n), REGIONS.repeat(n, 1)),
    ),
    "roi_pool": (
        lambda x, rois: mmcv.ops.roi_pool(x, rois, (2, 2), 1.0),
        lambda n: (image(n), REGIONS.repeat(n, 1)),
    ),
    "nms": (
        lambda boxes, scores: mmcv.ops.nms(boxes, scores, 0.5)[1],
        lambda n: (torch.rand(3 * n, 4) * 9 + torch.tensor([0, 0, 9, 9.0]), torch.rand(3 * n)),
    ),
    "deform_conv": (
        lambda x, offset, weight: mmcv.ops.deform_conv2d(x, offset, weight, 1, 1),
        lambda n: (image(n), torch.randn(2, 18, n + 4, n + 5), torch.randn(5, 4, 3, 3)),
    ),
    "modulated_deform_conv": (
        lambda x, offset, mask, weight: mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1),
        lambda n: (image(n), torch.randn(2, 18, n + 4, n + 5), torch.rand(2, 9, n + 4, n + 5), torch.randn(5, 4, 3, 3)),
    ),
    "focal_loss": (
        lambda scores, classes: mmcv.ops.sigmoid_focal_loss(scores, classes),
        lambda n: (torch.randn(2 * n, 4, requires_grad=True), torch.randint(0, 5, (2 * n,))),
    ),
    "carafe": (
        lambda x, masks: mmcv.ops.carafe(x, masks, 3, 1, 2),
        lambda n: (image(n), torch.rand(2, 9, 2 * n + 8, 2 * n + 10)),
    ),
    "ms_deform_attn": (
        lambda *tensors: MultiScaleDeformableAttnFunction.apply(*tensors, 4),
        lambda n: (
            torch.randn(2, n * n + 4, 2, 4, requires_grad=True),
            torch.tensor([[n, n], [2, 2]]),
            torch.tensor([0, n * n]),
            torch.rand(2, n + 1, 2, 2, 3, 2),
            torch.rand(2, n + 1, 2, 2, 3),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_itself_for_every_size(name):
    function, operands = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", dynamic=True)
    for n in (2, 3):
        tensors = operands(n)
        got, want = compiled(*tensors), function(*tensors)
        assert torch.allclose(got, want, atol=1e-5)
        if tensors[0].requires_grad:
            a, b = (torch.autograd.grad(out.square().sum(), tensors[0])[0] for out in (got, want))
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def changed(name, position, change):
    """The operands of a case, one of them changed."""
    tensors = list(CASES[name][1](2))
    tensors[position] = change(tensors[position].detach().clone())
    return tensors


def with_value(place, value):
    def change(tensor):
        tensor[place] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "position", "change", "message"),
    [
        ("roi_align", 1, with_value((1, 0), 2.0), "no image of the batch"),
        ("roi_align", 1, with_value((1, 0), 1e8), "no image of the batch"),
        ("roi_align", 1, with_value((0, 3), torch.nan), "values that are not finite"),
        ("roi_align", 1, with_value((0, 4), 1e30), "a region takes more than"),
        ("roi_pool", 1, with_value((1, 0), -1.0), "no image of the batch"),
        ("nms", 0, with_value((0, 0), torch.nan), "boxes has a NaN"),
        ("deform_conv", 1, lambda offset: offset[:, :16], r"offset must have the shape \(2, 18, h, w\)"),
    ],
)
def test_checks_before_it_reads(name, position, change, message):
    torch._dynamo.reset()
    function = CASES[name][0]
    if "takes more" in message:
        # As many samples as pixels.
        function = lambda x, rois: mmcv.ops.roi_align(x, rois, (2, 2), 1.0, 0, "avg", True)  # noqa: E731
    # Raised by the graph, or by what compiles it.
    with pytest.raises(Exception, match=message):
        torch.compile(function, backend="aot_eager")(*changed(name, position, change))
