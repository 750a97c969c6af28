"""Attention with a bias of low rank against published figures, its definition and attention with the bias itself."""

import golden_files
import operator_definitions
import pytest
import torch
import torch.nn.functional as F

from attnzoo.kernels import flash_bias_attention
from attnzoo.kernels.flash_bias import naive
from attnzoo.kernels.flash_bias.factors import bias_factors

GOLDEN = golden_files.load("flashbias")
CASES = GOLDEN["kwargs"]["cases"]


def relative(window):
    """Down and right from key to query, each pixel of a window to each."""
    rows, cols = (torch.arange(side) for side in window)
    row, col = rows.repeat_interleave(window[1]), cols.repeat(window[0])
    return row[:, None] - row, col[:, None] - col


def bias_of(case):
    """By the notes of the golden file."""
    down, right = relative(case["window"])
    heads = torch.arange(1, case["heads"] + 1, dtype=torch.float64)[:, None, None]
    if case["bias"] == "sqdist":
        return -0.02 * heads * (down**2 + right**2)
    if case["bias"] == "swin_gauss":
        return 2 * torch.exp(-(down**2 / (8 * heads) + right**2 / (11 * heads)))
    sides = [2 * side - 1 for side in case["window"]]
    table = golden_files.fill("relative_position_bias_table", (sides[0] * sides[1], case["heads"]))
    index = (down + case["window"][0] - 1) * sides[1] + right + case["window"][1] - 1
    return table[index].permute(2, 0, 1)


def inputs_of(name):
    number, case = list(CASES).index(name), CASES[name]
    shape = (case["batch"], case["heads"], case["window"][0] * case["window"][1], case["dim"])
    return [golden_files.noise(shape, 100 * number + i) for i in range(3)]


@pytest.mark.parametrize("function", [flash_bias_attention, naive.flash_bias_attention])
@pytest.mark.parametrize(("name", "rank"), [(name, rank) for name, case in CASES.items() for rank in case["ranks"]])
def test_published_result(name, rank, function):
    bias = bias_of(CASES[name])
    assert golden_files.error(bias, GOLDEN["outputs"][f"{name}/bias"]) < 1e-12
    *factors, energy = bias_factors(bias, rank)
    kept = torch.tensor(GOLDEN["outputs"][f"{name}/energy_rank{rank}"]["values"], dtype=torch.float64)
    torch.testing.assert_close(energy, kept, rtol=1e-12, atol=0)
    out = function(*inputs_of(name), *factors)
    assert golden_files.error(out, GOLDEN["outputs"][f"{name}/out_rank{rank}"]) < 1e-9
    exact = golden_files.error(out, GOLDEN["outputs"][f"{name}/out"]) < 1e-9
    # A random table's rank is full.
    assert exact == ((name, rank) in (("sqdist", 4), ("random", 49)))


def test_squared_distance_has_factors_of_its_own():
    """As the README writes them; so has ALiBi."""
    x, y = torch.randn(7, 2, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    ones = torch.ones(2, 9, 1, dtype=torch.float64)
    squares = [z.square().sum(1, keepdim=True) for z in (x, y)]
    factors = torch.cat([-0.3 * squares[0], ones[0, :7], 0.6 * x], 1), torch.cat([ones[0], -0.3 * squares[1], y], 1)
    torch.testing.assert_close(factors[0] @ factors[1].t(), -0.3 * (x[:, None] - y).square().sum(-1))
    assert bias_factors(factors[0] @ factors[1].t(), 4)[2] > 1 - 1e-12
    place = torch.arange(9, dtype=torch.float64)[:, None]
    factors = torch.cat([-0.5 * place, ones[0]], 1), torch.cat([ones[0], 0.5 * place], 1)
    torch.testing.assert_close(factors[0] @ factors[1].t(), -0.5 * (place - place.t()))


# One query and key, more of these than of those, values of another width, ranks beyond the channels, factors of each of
# the batch and of all heads.
SHAPES = [
    ((2, 3, 7, 9), (4, 4), (3, 7, 2), (3, 9, 2)),
    ((1, 2, 1, 1), (3, 3), (2, 1, 1), (2, 1, 1)),
    ((2, 2, 5, 6), (4, 9), (2, 2, 5, 3), (1, 2, 6, 3)),
    ((2, 2, 5, 4), (8, 3), (1, 5, 20), (2, 1, 4, 20)),
    ((2, 2, 3, 4), (8, 16), (2, 3, 8), (2, 4, 8)),
]


@pytest.mark.parametrize(("sizes", "dims", "query_factor", "key_factor"), SHAPES)
@pytest.mark.parametrize("scale", [None, -0.4, 0.0])
def test_equals_attention_with_the_bias(sizes, dims, query_factor, key_factor, scale):
    batch, heads, queries, keys = sizes
    shapes = ((batch, heads, queries, dims[0]), (batch, heads, keys, dims[0]), (batch, heads, keys, dims[1]))
    given = [torch.randn(shape, dtype=torch.float64) for shape in (*shapes, query_factor, key_factor)]
    bias = (given[3] @ given[4].mT).expand(batch, heads, -1, -1)
    want = F.scaled_dot_product_attention(*given[:3], attn_mask=bias, scale=scale)
    for function in (flash_bias_attention, naive.flash_bias_attention, operator_definitions.flash_bias_attention):
        torch.testing.assert_close(function(*given, scale), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("sizes", "dims", "query_factor", "key_factor"), SHAPES[:4])
def test_gradients(sizes, dims, query_factor, key_factor):
    batch, heads, queries, keys = sizes
    shapes = ((batch, heads, queries, dims[0]), (batch, heads, keys, dims[0]), (batch, heads, keys, dims[1]))
    given = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in (*shapes, query_factor, key_factor)]
    assert torch.autograd.gradcheck(flash_bias_attention, given, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype):
    """Factors keep float32, as under autocast, and so do their gradients."""
    q, k, v = (torch.randn(2, 2, 33, 16).to(dtype).requires_grad_() for _ in range(3))
    factors = [(0.3 * torch.randn(2, 33, 5)).requires_grad_() for _ in range(2)]
    given = (q, k, v, *factors)
    exact = [x.detach().double().requires_grad_() for x in given]
    got, want = flash_bias_attention(*given), naive.flash_bias_attention(*exact)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    grads, wanted = torch.autograd.grad(got.sum(), given), torch.autograd.grad(want.sum(), exact)
    assert [x.dtype for x in grads] == [dtype] * 3 + [torch.float32] * 2
    for x, y in zip(grads, wanted, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=4 * tolerance, atol=4 * tolerance)


def test_no_matrix_of_queries_and_keys_is_made():
    """Fused attention takes it on a CPU too: what is kept for the backward pass is thin."""
    tokens = 400
    given = [torch.randn(1, 2, tokens, 16).requires_grad_() for _ in range(3)]
    factors = [torch.randn(2, tokens, 4).requires_grad_() for _ in range(2)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        flash_bias_attention(*given, *factors)
    assert kept and max(x.numel() for x in kept) <= 2 * tokens * 24


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_factors(rank):
    bias = torch.randn(2, 7, 5, dtype=torch.float64)
    query, key, energy = bias_factors(bias, rank)
    assert query.shape == (2, 7, rank) and key.shape == (2, 5, rank)
    left = (bias - query @ key.mT).square().sum((1, 2)) / bias.square().sum((1, 2))
    torch.testing.assert_close(1 - left, energy, rtol=1e-9, atol=1e-12)
    # No other matrix of that rank is nearer.
    values = torch.linalg.svdvals(bias).square()
    torch.testing.assert_close(energy, values[:, :rank].sum(1) / values.sum(1))
    half = bias_factors(bias.bfloat16(), rank)
    assert half[0].dtype == half[1].dtype == torch.bfloat16


def test_factors_of_nothing():
    query, key, energy = bias_factors(torch.zeros(2, 3, 4), 2)
    assert not query.any() and not key.any() and energy.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("bias", "rank", "error", "message"),
    [
        (torch.zeros(3, 4), 4, ValueError, r"rank must be 1 to the smaller side of bias, got 4 for \(3, 4\)"),
        (torch.zeros(3, 4), 0, ValueError, "rank must be 1 to the smaller side of bias, got 0"),
        (torch.zeros(3), 1, ValueError, "rank must be 1 to the smaller side of bias"),
        (torch.zeros(3, 4), 2.0, TypeError, "rank must be an integer, got 2.0"),
        (torch.zeros(3, 4).int(), 2, TypeError, "bias must be float32, float64"),
    ],
)
def test_factors_refuse(bias, rank, error, message):
    with pytest.raises(error, match=message):
        bias_factors(bias, rank)


@pytest.mark.long
def test_compiles_to_one_graph_with_free_sizes():
    compiled = torch.compile(flash_bias_attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for queries, keys in ((9, 12), (5, 7), (16, 16)):
        given = [torch.randn(2, 2, n, 8).requires_grad_() for n in (queries, keys, keys)]
        given += [torch.randn(2, n, 3).requires_grad_() for n in (queries, keys)]
        out, want = compiled(*given), flash_bias_attention(*given)
        torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
        for got, expected in zip(
            torch.autograd.grad(out.sum(), given), torch.autograd.grad(want.sum(), given), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_exports_with_free_sizes():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, query_factor, key_factor):
            return flash_bias_attention(q, k, v, query_factor, key_factor)

    free, tokens = torch.export.Dim.DYNAMIC, {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    given = tuple(torch.randn(2, 2, 9, 8) for _ in range(3)) + tuple(torch.randn(2, 9, 3) for _ in range(2))
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            Layer(), given, dynamic_shapes=(tokens, tokens, tokens, {1: free}, {1: free}), strict=False
        ).module()
    for batch, n in ((1, 5), (3, 20)):
        given = [torch.randn(batch, 2, n, 8) for _ in range(3)] + [torch.randn(2, n, 3) for _ in range(2)]
        torch.testing.assert_close(program(*given), flash_bias_attention(*given), rtol=1e-5, atol=1e-5)
