"""Neighborhood attention with strides and causal axes against published figures, its definition and other operators."""

import golden_files
import operator_definitions
import pytest
import torch

from attnzoo.kernels import generalized_neighborhood_attention, neighborhood_attention, window_attention
from attnzoo.kernels.neighborhood_attention import cpu, naive

GOLDEN = golden_files.load("gna_2d")


def qkv(b, h, w, c, dtype=torch.float64):
    return torch.randn(b, h, w, 3 * c, dtype=dtype).chunk(3, -1)


def settings_of(name):
    """Of a case of the golden file: inputs by its notes, and the operator's settings."""
    number, case = list(GOLDEN["kwargs"]["cases"]).index(name), GOLDEN["kwargs"]["cases"][name]
    shape = (case["batch"], *case["shape"], case["heads"], case["dim"])
    maps = [golden_files.noise(shape, 100 * number + i).flatten(3) for i in range(3)]
    settings = {key: tuple(case[key]) for key in ("kernel_size", "stride", "dilation", "is_causal")}
    return maps, settings | {"num_heads": case["heads"]}


@pytest.mark.parametrize("function", [generalized_neighborhood_attention, naive.generalized_neighborhood_attention])
@pytest.mark.parametrize("name", GOLDEN["kwargs"]["cases"])
def test_published_result(name, function):
    maps, settings = settings_of(name)
    out = function(*maps, **settings).unflatten(3, (settings["num_heads"], -1))
    assert golden_files.error(out, GOLDEN["outputs"][f"{name}/out"]) < 1e-12


@pytest.mark.parametrize("name", GOLDEN["kwargs"]["cases"])
def test_published_windows(name):
    """What a query sees: the pixels by whose values, one at a time, its result changes."""
    (q, _, _), settings = settings_of(name)
    height, width = q.shape[1:3]
    pixels = height * width
    values = torch.eye(pixels, dtype=torch.float64).view(1, height, width, pixels)
    zeros = torch.zeros_like(values)
    seen = generalized_neighborhood_attention(zeros, zeros, values, **settings | {"num_heads": 1}) > 0
    seen = seen.view(pixels, pixels).double()
    assert golden_files.error(seen, GOLDEN["outputs"][f"{name}/mask"]) < 1e-12
    counted, want = golden_files.digest(seen.sum(1).view(height, width)), GOLDEN["outputs"][f"{name}/keys_per_query"]
    assert (counted["shape"], counted["values"]) == (want["shape"], want["values"])


# Windows of even and odd sides, strides that divide them and that do not, one tile and several, residue classes of one
# length and of two, maps smaller than the window and than the dilation.
CASES = [
    (2, 9, 14, dict(kernel_size=3, stride=2)),
    (1, 30, 8, dict(kernel_size=(4, 8), stride=(4, 8))),
    (1, 29, 17, dict(kernel_size=(7, 5), stride=(3, 5), dilation=(1, 2))),
    (1, 12, 33, dict(kernel_size=(2, 6), stride=(1, 4), dilation=(3, 1))),
    (2, 11, 12, dict(kernel_size=(5, 4), stride=(2, 4), is_causal=(True, False))),
    (1, 23, 26, dict(kernel_size=(5, 3), stride=(5, 2), dilation=(2, 3), is_causal=True)),
    (1, 20, 19, dict(kernel_size=6, is_causal=(False, True))),
    (1, 3, 20, dict(kernel_size=5, stride=4, is_causal=(True, False))),
    (1, 2, 4, dict(kernel_size=(7, 3), stride=(6, 2), dilation=(1, 5))),
    (1, 1, 1, dict(kernel_size=3, stride=3, is_causal=True)),
    (1, 6, 5, dict(kernel_size=1)),
]


def table_of(settings, dtype=torch.float64):
    sides = settings["kernel_size"]
    rows, cols = (sides, sides) if isinstance(sides, int) else sides
    return torch.randn(2, 2 * rows - 1, 2 * cols - 1, dtype=dtype)


@pytest.mark.parametrize(("b", "h", "w", "settings"), CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_equals_the_dense_one(b, h, w, settings, biased):
    maps, table = qkv(b, h, w, 4), table_of(settings) if biased else None
    given = dict(num_heads=2, bias_table=table, scale=0.7, **settings)
    want = operator_definitions.generalized_neighborhood_attention(*maps, **given)
    torch.testing.assert_close(naive.generalized_neighborhood_attention(*maps, **given), want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(generalized_neighborhood_attention(*maps, **given), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5, 7])
def test_every_stride_and_length_of_an_axis(kernel_size, is_causal):
    """Tiles lie anew at each: all strides, and lengths up to some windows."""
    table = torch.randn(1, 1, 2 * kernel_size - 1, dtype=torch.float64)
    for stride in range(1, kernel_size + 1):
        for w in range(1, 4 * kernel_size + 4):
            maps = qkv(1, 1, w, 2)
            given = dict(num_heads=1, kernel_size=(1, kernel_size), stride=(1, stride), is_causal=(False, is_causal))
            got = generalized_neighborhood_attention(*maps, **given, bias_table=table)
            want = naive.generalized_neighborhood_attention(*maps, **given, bias_table=table)
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
def test_stride_of_one_is_neighborhood_attention(dilation):
    maps, table = qkv(2, 13, 18, 4), torch.randn(2, 9, 9, dtype=torch.float64)
    want = neighborhood_attention(*maps, 2, 5, dilation, table)
    got = generalized_neighborhood_attention(*maps, 2, 5, dilation=dilation, bias_table=table)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_stride_of_the_window_is_attention_in_windows():
    maps, table = qkv(2, 12, 15, 4), torch.randn(2, 7, 9, dtype=torch.float64)
    # Its table counts the other way.
    want = window_attention(*maps, 2, (4, 5), bias_table=table.flip(1, 2).flatten(1).t())
    got = generalized_neighborhood_attention(*maps, 2, (4, 5), stride=(4, 5), bias_table=table)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_causal_axes_of_the_whole_map_are_causal_attention():
    q, k, v = qkv(2, 1, 9, 4)
    heads = [x.flatten(1, 2).unflatten(2, (2, 2)).transpose(1, 2) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(q.shape)
    got = generalized_neighborhood_attention(q, k, v, 2, 9, is_causal=(False, True))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("h", "w"), [(7, 10), (4, 3)])
@pytest.mark.parametrize("is_causal", [False, (True, False)])
def test_gradients(h, w, is_causal):
    inputs = [x.clone().requires_grad_() for x in qkv(1, h, w, 2)]
    settings = dict(kernel_size=(3, 4), stride=(2, 3), dilation=(1, 2), is_causal=is_causal)
    inputs.append(table_of(settings).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda *x: generalized_neighborhood_attention(*x[:3], 2, bias_table=x[3], **settings), inputs
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_of_the_form_that_is_compiled(is_causal):
    inputs = [x.clone().requires_grad_() for x in (*qkv(1, 5, 4, 2), torch.randn(2, 6, 8).double())]

    def indexed(q, k, v, table):
        padded = torch.nn.functional.pad(table[:, :-1, :-1], [0, 1, 0, 1], value=float("-inf"))
        return cpu._gathered(q, k, v, 2, (3, 2, is_causal), (4, 3, False), (1, 2), padded, 0.7)

    assert torch.autograd.gradcheck(indexed, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("learns", [False, True])
def test_lower_precision(dtype, learns):
    settings = dict(num_heads=2, kernel_size=(6, 5), stride=(3, 2), is_causal=(False, True))
    maps, table = qkv(2, 21, 19, 16), table_of(settings)
    want = generalized_neighborhood_attention(*maps, **settings, bias_table=table)
    table = table.to(dtype).requires_grad_(learns)
    maps = [x.to(dtype).requires_grad_() for x in maps]
    got = generalized_neighborhood_attention(*maps, **settings, bias_table=table)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    got.sum().backward()
    assert all(x.grad.isfinite().all() for x in (*maps, *([table] if learns else [])))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(2, 7, 5))

    def forward(self, x):
        q, k, v = x.chunk(3, -1)
        return generalized_neighborhood_attention(
            q, k, v, 2, (4, 3), (2, 3), (1, 2), is_causal=(True, False), bias_table=self.table
        )


SIZES = [(1, 11, 40), (3, 30, 9), (2, 16, 16), (2, 4, 8), (1, 2, 3)]


def test_exports_with_free_sizes():
    layer, free = Layer(), torch.export.Dim.DYNAMIC
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            layer, (torch.randn(2, 20, 25, 24),), dynamic_shapes=({0: free, 1: free, 2: free},), strict=False
        ).module()
    for size in SIZES:
        x = torch.randn(*size, 24)
        torch.testing.assert_close(program(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_compiles_to_one_graph_with_free_sizes():
    layer = Layer()
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=True)
    for size in SIZES:
        x = torch.randn(*size, 24)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
