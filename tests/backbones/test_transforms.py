"""The transforms of `torch.func` and forward mode over the models, against plain autograd."""

import pytest
import timm
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.profiler import ProfilerActivity, profile
from zoo import one_of_a_class, restores, shallow

import attnzoo
from attnzoo.backbones.bodies.attention import softmax_attention

# One of each class of models, CoaT with and without parallel blocks, and a model with plug-ins that are linked.
NAMES = tuple(dict.fromkeys((*one_of_a_class(), "coat_lite_tiny", "coat_tiny", "mscan_tiny", "van_b0", "pkcam")))


def small(name: str) -> torch.nn.Module:
    if name == "pkcam":
        model = timm.create_model("resnet18", layers=(1, 1, 1, 1), num_classes=3)
        return attnzoo.attach(model, "pkcam", identity=False).double().eval()
    kwargs = dict(depths=(1,), num_heads=(6,)) if restores(name) else dict(num_classes=3)
    return shallow(name, dtype=torch.float64, **kwargs).eval()


@pytest.mark.parametrize("name", NAMES)
def test_transforms_equal_plain_autograd(name):
    """Gradients of the whole, of each image, of parameters, and derivatives along a direction."""
    torch.manual_seed(0)
    model = small(name)
    x = torch.randn(2, 3, 17, 33, dtype=torch.float64)[..., : 16 if name != "pkcam" and restores(name) else 33]
    direction, leaf = torch.randn_like(x), x.clone().requires_grad_()

    def loss(images: torch.Tensor) -> torch.Tensor:
        return model(images).square().sum()

    want = torch.autograd.grad(loss(leaf), leaf)[0]
    close = dict(rtol=1e-9, atol=1e-12 * want.abs().max().item())
    torch.testing.assert_close(grad(loss)(x), want, **close)
    torch.testing.assert_close(vmap(grad(lambda image: loss(image[None])))(x), want, **close)
    torch.testing.assert_close(vmap(lambda image: model(image[None])[0])(x), model(x).detach(), rtol=1e-9, atol=1e-12)

    slope = (want * direction).sum()
    if name.startswith("litv2_"):
        with pytest.raises(NotImplementedError, match="forward AD with grid_sampler_2d"):
            jvp(loss, (x,), (direction,))
    else:
        torch.testing.assert_close(jvp(loss, (x,), (direction,))[1], slope, rtol=1e-9, atol=0.0)
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, direction)))
        torch.testing.assert_close(dual.tangent.detach(), slope, rtol=1e-9, atol=0.0)

    parameters = {key: value.detach() for key, value in model.named_parameters()}
    plain = torch.autograd.grad(loss(x), list(model.parameters()), materialize_grads=True)
    found = grad(lambda values: functional_call(model, values, (x,)).square().sum())(parameters)
    for a, b in zip(found.values(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize(
    ("shape", "dim"),
    [(None, None), ((3, 1, 1, 5, 5), 0), ((3, 2, 2, 5, 5), 0), ((1, 2, 5, 5), None), ((2, 1, 5, 5), None)],
    ids=str,
)
def test_attention_takes_the_fused_kernel_under_vmap_alone(shape, dim):
    """Once, and never the matrix of weights. Derivatives taken inside of `torch.no_grad` are still the formula's.

    Args:
        shape: of the bias, if there is one.
        dim: of the bias, along which each call has its own; None for one bias for all.
    """
    q, k, v, direction = (torch.randn(3, 2, 2, 5, 4, dtype=torch.float64) for _ in range(4))
    bias = None if shape is None else torch.randn(shape, dtype=torch.float64)

    def alone(i: int) -> list[torch.Tensor | None]:
        return [q[i], k[i], v[i], bias if dim is None else bias[i]]

    def loss(q: torch.Tensor) -> torch.Tensor:
        return softmax_attention(q, *alone(0)[1:]).square().sum()

    want = torch.stack([softmax_attention(*alone(i)) for i in range(3)])
    slope = (grad(loss)(q[0]) * direction[0]).sum()
    with torch.no_grad():
        with profile(activities=[ProfilerActivity.CPU]) as record:
            found = vmap(softmax_attention, (1, 1, 1, dim))(*(x.transpose(0, 1) for x in (q, k, v)), bias)
        names = [event.name for event in record.events()]
        assert names.count("aten::scaled_dot_product_attention") == 1 and "aten::softmax" not in names
        torch.testing.assert_close(found, want)
        torch.testing.assert_close((grad(loss)(q[0]) * direction[0]).sum(), slope)
        torch.testing.assert_close(jvp(loss, (q[0],), (direction[0],))[1], slope)
        slopes = vmap(lambda d: jvp(loss, (q[0],), (d,))[1])(direction[:1])
        torch.testing.assert_close(slopes, slope[None])


@pytest.mark.parametrize("same", ["q and k", "k and v", "all"])
def test_attention_of_one_tensor_to_itself_has_second_derivatives(same):
    x, other, direction = (torch.randn(1, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    inputs = {"q and k": (x, x, other), "k and v": (other, x, x), "all": (x, x, x)}[same]

    def plain(q, k, v):
        return (q @ k.transpose(2, 3) / 2).softmax(-1) @ v

    found = []
    for attend in (softmax_attention, plain):
        (first,) = torch.autograd.grad(attend(*inputs).square().sum(), x, create_graph=True)
        found.append((first, *torch.autograd.grad((first * direction).sum(), x)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
