"""Block-sparse attention against published figures, its definition and attention."""

import golden_files
import operator_definitions
import pytest
import torch
import torch.nn.functional as F

from attnzoo.kernels import block_sparse_attention
from attnzoo.kernels.block_sparse_attention import cpu, naive, selection

GOLDEN = golden_files.load("sparge_block_map")
CASES = GOLDEN["kwargs"]["cases"]


def inputs_of(name):
    """By the notes of the golden file: neighbours are alike."""
    case, base = CASES[name], 100 * list(CASES).index(name)
    shape = case["batch"], case["heads"], case["tokens"], case["dim"]
    coarse = *shape[:2], -(-case["tokens"] // case["smooth"]), case["dim"]

    def smooth(seed):
        trend = golden_files.noise(coarse, seed + 50).repeat_interleave(case["smooth"], 2)
        return golden_files.noise(shape, seed) + 1.5 * trend[:, :, : case["tokens"]]

    return smooth(base), smooth(base + 1), golden_files.noise(shape, base + 2)


def settings_of(name):
    case = CASES[name]
    choice = {key: case.get(key) for key in ("topk", "cdf")}
    return dict(block_size=(case["block_q"], case["block_k"]), similarity=case["sim_threshold"], **choice)


@pytest.mark.parametrize("function", [block_sparse_attention, naive.block_sparse_attention])
@pytest.mark.parametrize("name", CASES)
def test_published_result(name, function):
    out = function(*inputs_of(name), **settings_of(name))
    assert golden_files.error(out, GOLDEN["outputs"][f"{name}/out"]) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_published_choice(name):
    (q, k, _), settings = inputs_of(name), settings_of(name)
    scale = q.shape[3] ** -0.5
    kept = selection.select_blocks(q, k, **settings, scale=scale)
    assert golden_files.error(kept.double(), GOLDEN["outputs"][f"{name}/block_map"]) < 1e-12
    described = [selection.describe(x, side) for x, side in zip((q, k), settings["block_size"], strict=True)]
    alike = [likeness > settings["similarity"] for _, likeness in described]
    for found, of in zip(alike, "qk", strict=True):
        want = GOLDEN["outputs"][f"{name}/similar_{of}"]
        assert golden_files.digest(found.double())["values"] == want["values"] and list(found.shape) == want["shape"]
    scores = selection.block_scores(described[0][0], described[1][0], alike[1], scale)
    assert golden_files.error(scores, GOLDEN["outputs"][f"{name}/block_scores"]) < 1e-12


# Blocks that divide the tokens and that do not, one alone, more than there are tokens; little kept and much.
SETTINGS = [
    dict(block_size=(8, 4), topk=0.3),
    dict(block_size=(7, 5), similarity=0.3, topk=None, cdf=0.6),
    dict(block_size=3, similarity=0.4, topk=0.01),
    dict(block_size=(100, 6), similarity=-1, topk=0.5),
    dict(block_size=(6, 100), similarity=0.2),
    dict(block_size=1, topk=0.2, scale=2.0),
    dict(block_size=4, similarity=0.2, topk=None, cdf=0.0),
]


def tokens(queries, keys, dtype=torch.float64, dim=6):
    """Each of which is like the four before it."""
    q, k = (torch.randn(2, 2, -(-n // 5), dim).repeat_interleave(5, 2)[:, :, :n] for n in (queries, keys))
    return [x.to(dtype) for x in (q + 0.5 * torch.randn_like(q), k + 0.5 * torch.randn_like(k))] + [
        torch.randn(2, 2, keys, dim + 1, dtype=dtype)
    ]


@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_the_definition(settings):
    given = tokens(27, 33)
    want = operator_definitions.block_sparse_attention(*given, **settings)
    torch.testing.assert_close(naive.block_sparse_attention(*given, **settings), want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(block_sparse_attention(*given, **settings), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", [dict(topk=1.0), dict(similarity=1.1), dict(topk=None, cdf=1.0, similarity=0.5)])
def test_all_kept_is_attention(settings):
    q, k, v = tokens(27, 33)
    torch.testing.assert_close(
        block_sparse_attention(q, k, v, (8, 4), **settings), F.scaled_dot_product_attention(q, k, v)
    )


def test_choice_by_hand():
    """Four blocks of two keys: two like a query's, one of tokens that are not alike, one far away."""
    east, west, north = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]]).double()[0]
    k = torch.stack([3 * east, 3 * east, 2 * east, 2 * east, north, -north, west, west])[None, None]
    q = torch.stack([east, east, east, west])[None, None]
    kept = selection.select_blocks(q, k, (2, 2), 0.5, 0.25, None, 1.0)[0, 0]
    # The best one and what is not alike; queries that are not alike keep all.
    assert kept.tolist() == [[True, False, True, False], [True, True, True, True]]
    kept = selection.select_blocks(q, k, (2, 2), 0.5, 0.5, None, 1.0)[0, 0]
    assert kept[0].tolist() == [True, True, True, False]
    # By mass: the best has e/(e + 1 + e^-3) = 0.73 of what the first two have together, 0.9866.
    for mass, want in ((0.5, 1), (0.72, 1), (0.98, 1), (0.99, 2), (1.0, 3)):
        kept = selection.select_blocks(q, k, (2, 2), 0.5, None, mass, 1.0)[0, 0, 0]
        assert kept.tolist() == [True, want > 1, True, want > 2]
    # Nothing that is alike: nothing to choose by.
    assert selection.select_blocks(q, k, (2, 8), 0.5, 0.25, None, 1.0).all()


def test_shares_are_rounded_down_as_python_rounds():
    """29 of 100 would be 28, as 0.29 times 100 is a little less."""
    k = torch.randn(1, 1, 100, 4, dtype=torch.float64)
    for share in (0.29, 0.57, 0.07, 0.5, 0.005):
        kept = selection.select_blocks(k, k, (1, 1), -1, share, None, 1.0)
        assert kept.sum(-1).unique().tolist() == [max(int(share * 100), 1)]


def test_a_map_of_ones_own():
    q, k, v = tokens(10, 12)
    kept = torch.rand(2, 2, 3, 4) < 0.5
    kept[..., 1] = True
    seen = kept.repeat_interleave(4, 2)[:, :, :10].repeat_interleave(3, 3)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    for function in (block_sparse_attention, naive.block_sparse_attention):
        torch.testing.assert_close(function(q, k, v, (4, 3), block_map=kept), want)
    torch.testing.assert_close(block_sparse_attention(q, k, v, (4, 3), topk=None, block_map=kept), want)


@pytest.mark.parametrize("settings", SETTINGS[:3])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(settings, masked, monkeypatch):
    """Through the choice none go."""
    if masked:
        monkeypatch.setattr(cpu, "leaves_sizes_free", lambda: True)
    given = [x.requires_grad_() for x in tokens(9, 12)]
    assert torch.autograd.gradcheck(lambda *x: block_sparse_attention(*x, **settings), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: block_sparse_attention(*x, **settings), given, fast_mode=True)


@pytest.mark.parametrize("settings", SETTINGS)
def test_mask_of_other_devices_is_the_same(settings, monkeypatch):
    given = tokens(27, 33)
    want = block_sparse_attention(*given, **settings)
    monkeypatch.setattr(cpu, "_attend_blocks", None)
    monkeypatch.setattr(cpu, "leaves_sizes_free", lambda: True)
    torch.testing.assert_close(block_sparse_attention(*given, **settings), want, rtol=1e-10, atol=1e-12)


def test_what_is_left_out_costs_nothing():
    """Of the products, by their number."""
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = tokens(64, 64)
    counted = []
    for share in (0.25, 1.0):
        with FlopCounterMode(display=False) as counter:
            block_sparse_attention(q, k, v, 16, -1, topk=share)
        counted.append(counter.get_total_flops())
    assert 3.5 * counted[0] < counted[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype):
    given = [x.to(dtype).requires_grad_() for x in tokens(40, 50, dim=16)]
    exact = [x.detach().double().requires_grad_() for x in given]
    settings = dict(block_size=(10, 5), similarity=0.3, topk=0.3)
    assert operator_definitions.block_sparse_margin(*exact[:2], **settings, cdf=None, scale=None) > 1e-4
    got, want = block_sparse_attention(*given, **settings), naive.block_sparse_attention(*exact, **settings)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    grads, wanted = torch.autograd.grad(got.sum(), given), torch.autograd.grad(want.sum(), exact)
    for x, y in zip(grads, wanted, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), y, rtol=4 * tolerance, atol=4 * tolerance)


@pytest.mark.long
def test_compiles_to_one_graph_with_free_sizes():
    compiled = torch.compile(block_sparse_attention, backend="eager", fullgraph=True, dynamic=True)
    for queries, keys in ((27, 33), (12, 40)):
        given = [x.requires_grad_() for x in tokens(queries, keys)]
        out, want = compiled(*given, **SETTINGS[1]), block_sparse_attention(*given, **SETTINGS[1])
        torch.testing.assert_close(out, want)
        for got, expected in zip(
            torch.autograd.grad(out.sum(), given), torch.autograd.grad(want.sum(), given), strict=True
        ):
            torch.testing.assert_close(got, expected)


def test_exports_with_free_sizes():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return block_sparse_attention(q, k, v, (8, 4), topk=0.4)

    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            Layer(), tuple(tokens(27, 33)), dynamic_shapes=(free, free, free), strict=False
        ).module()
    for queries, keys in ((27, 33), (16, 50)):
        given = tokens(queries, keys)
        torch.testing.assert_close(program(*given), Layer()(*given))
