import operator_definitions
import pytest
import torch

from attnzoo.kernels import neighborhood_attention
from attnzoo.kernels.neighborhood_attention import cpu, naive


def qkv(b, h, w, c, dtype=torch.float64):
    return torch.randn(b, h, w, 3 * c, dtype=dtype).chunk(3, -1)


def bias(num_heads, kernel_size, dtype=torch.float64):
    return torch.randn(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1, dtype=dtype)


# One tile, several, one and several; residue classes of one length and of two; batches; maps that are smaller than the
# window in one direction or both, and than the dilation.
CASES = [
    (1, 3, 3, 3, 1),
    (2, 7, 7, 7, 1),
    (1, 8, 30, 7, 1),
    (2, 11, 9, 3, 1),
    (1, 18, 25, 7, 1),
    (1, 14, 16, 7, 2),
    (2, 11, 12, 3, 3),
    (1, 40, 15, 5, 3),
    (1, 29, 31, 3, 4),
    (1, 15, 34, 15, 1),
    (1, 1, 1, 3, 1),
    (1, 4, 9, 7, 1),
    (2, 13, 11, 5, 3),
    (1, 3, 17, 7, 2),
    (1, 2, 5, 3, 4),
]


@pytest.mark.parametrize(("b", "h", "w", "kernel_size", "dilation"), CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_definition_equals_the_dense_one(b, h, w, kernel_size, dilation, biased):
    given = (*qkv(b, h, w, 4), 2, kernel_size, dilation, bias(2, kernel_size) if biased else None, 0.7)
    want = operator_definitions.neighborhood_attention(*given)
    torch.testing.assert_close(naive.neighborhood_attention(*given), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("b", "h", "w", "kernel_size", "dilation"), CASES)
@pytest.mark.parametrize("learns", [False, True])
def test_equals_the_definition(b, h, w, kernel_size, dilation, learns):
    """Through `scaled_dot_product_attention`, and through the branch for a bias that learns."""
    q, k, v = qkv(b, h, w, 4)
    table = bias(2, kernel_size)
    got = neighborhood_attention(q, k, v, 2, kernel_size, dilation, table.requires_grad_(learns), 0.7)
    want = naive.neighborhood_attention(q, k, v, 2, kernel_size, dilation, table.detach(), 0.7)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_without_bias_and_with_the_default_scale():
    q, k, v = qkv(1, 9, 22, 8)
    got = neighborhood_attention(q, k, v, 2, 5)
    want = naive.neighborhood_attention(q, k, v, 2, 5)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert torch.equal(want, naive.neighborhood_attention(q, k, v, 2, 5, 1, None, 0.5))


@pytest.mark.parametrize("kernel_size", range(3, 16, 2))
def test_every_length_of_an_axis(kernel_size):
    """Tiles lie anew at each length: all up to six windows."""
    table = bias(1, kernel_size)
    for w in range(kernel_size, 6 * kernel_size):
        q, k, v = qkv(1, kernel_size, w, 2)
        got = neighborhood_attention(q, k, v, 1, kernel_size, 1, table, 1.0)
        want = naive.neighborhood_attention(q, k, v, 1, kernel_size, 1, table, 1.0)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [7, 9, 15])
def test_window_of_the_whole_map_is_full_attention(kernel_size):
    q, k, v = qkv(2, 7, 7, 8)
    heads = [x.flatten(1, 2).unflatten(2, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 7, 7, 8)
    got = neighborhood_attention(q, k, v, 2, kernel_size)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_window_of_one_pixel_gives_its_value():
    """As many residue classes as pixels."""
    q, k, v = qkv(1, 3, 4, 8)
    torch.testing.assert_close(neighborhood_attention(q, k, v, 2, 3, 4, bias(2, 3)), v)


@pytest.mark.parametrize(("h", "w", "dilation"), [(3, 4, 1), (10, 4, 1), (7, 6, 2), (2, 3, 1), (5, 2, 2)])
def test_gradients(h, w, dilation):
    q, k, v = (x.clone().requires_grad_() for x in qkv(1, h, w, 2))
    table = bias(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: neighborhood_attention(*x[:3], 2, 3, dilation, x[3]), (q, k, v, table))
    assert torch.autograd.gradcheck(lambda *x: neighborhood_attention(*x, 2, 3, dilation, table.detach()), (q, k, v))


@pytest.mark.parametrize(("h", "w", "dilation"), [(4, 5, 1), (2, 5, 1), (5, 2, 2)])
def test_gradients_of_the_form_that_is_compiled(h, w, dilation):
    q, k, v = (x.clone().requires_grad_() for x in qkv(1, h, w, 2))
    table = bias(2, 3).requires_grad_()

    def indexed(q, k, v, table):
        padded = torch.nn.functional.pad(table, [0, 1, 0, 1], value=float("-inf"))
        return cpu._gathered(q, k, v, 2, (3, 1, False), (3, 1, False), (dilation, dilation), padded, 0.7)

    assert torch.autograd.gradcheck(indexed, (q, k, v, table))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
def test_lower_precision(dtype, learns, dilation):
    q, k, v = qkv(2, 26, 19, 16)
    table = bias(2, 7)
    want = neighborhood_attention(q, k, v, 2, 7, dilation, table)
    table = table.to(dtype).requires_grad_(learns)
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    got = neighborhood_attention(q, k, v, 2, 7, dilation, table)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    got.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v, *([table] if learns else [])))


class Layer(torch.nn.Module):
    def __init__(self, kernel_size: int, dilation: int):
        super().__init__()
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.table = torch.nn.Parameter(bias(2, kernel_size, torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.chunk(3, -1)
        return neighborhood_attention(q, k, v, 2, self.kernel_size, self.dilation, self.table)


SIZES = [(1, 11, 40), (3, 30, 9), (2, 16, 16), (2, 4, 8), (1, 2, 3)]


@pytest.mark.parametrize("dilation", [1, 3])
def test_exports_with_free_sizes(dilation):
    """An exported graph attends through indices: equal to the eager function at other sizes and batches."""
    layer, free = Layer(3, dilation), torch.export.Dim.DYNAMIC
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            layer, (torch.randn(2, 20, 25, 24),), dynamic_shapes=({0: free, 1: free, 2: free},), strict=False
        ).module()
    for size in SIZES:
        x = torch.randn(*size, 24)
        torch.testing.assert_close(program(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_compiles_to_one_graph_with_free_sizes():
    layer = Layer(3, 2)
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=True)
    for size in SIZES:
        x = torch.randn(*size, 24)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


def test_torchscript():
    layer = Layer(3, 3)
    scripted = torch.jit.script(layer)
    for size in SIZES:
        x = torch.randn(*size, 24)
        torch.testing.assert_close(scripted(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_heads=3), "num_heads must divide"),
        (dict(num_heads=0), "num_heads must divide"),
        (dict(kernel_size=4), "kernel_size must be odd"),
        (dict(kernel_size=1), "kernel_size must be odd"),
        (dict(kernel_size=17), "kernel_size must be odd"),
        (dict(dilation=0), "dilation must be at least 1"),
        (dict(bias_table=torch.zeros(2, 3, 5)), r"bias_table must be \(2, 5, 5\), got \(2, 3, 5\)"),
    ],
)
def test_bad_arguments(kwargs, message):
    q, k, v = qkv(1, 5, 6, 8)
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(q, k, v, **{**dict(num_heads=2, kernel_size=3), **kwargs})


def test_map_without_pixels():
    q, k, v = qkv(1, 0, 6, 8)
    with pytest.raises(ValueError, match=r"H, W and C must be at least 1, got \(0, 6, 8\)"):
        neighborhood_attention(q, k, v, 2, 3)


def test_shapes_must_agree():
    q, k, v = qkv(1, 6, 6, 8)
    with pytest.raises(ValueError, match="alike"):
        neighborhood_attention(q, k[:, :3], v, 2, 3)
