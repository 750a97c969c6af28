"""The table of measurements: what it may hold, which card it is of, and that "auto" obeys it."""

import json
import logging
import sys

import pytest
import torch
import torch._dynamo.testing
from kernel_helpers import cases

from attnzoo import kernels
from attnzoo.kernels import _dispatch, _measured
from attnzoo.kernels.window_attention import operator as window_operator

CARD = ("NVIDIA Made-up", (9, 0))
GOOD = dict(
    operator="window_attention",
    dtype="float32",
    size=6,
    triton_ms=1.0,
    torch_ms=2.0,
    triton_error=1e-6,
    torch_error=1e-6,
) | {"pass": "forward"}


def written(path, *cards):
    file = path / "measured.json"
    file.write_text(json.dumps({"cards": list(cards)}))
    return file


def card(*records, name=CARD[0], capability=CARD[1]):
    return {"name": name, "capability": list(capability), "records": list(records)}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Puts a table in place of the package's own, and lets it be of the CPU, where the interpreter runs Triton."""

    def put(*cards, this=CARD):
        table = _measured.read(written(tmp_path, *cards))
        monkeypatch.setattr(_measured, "table", lambda: table)
        monkeypatch.setattr(_dispatch, "_card", lambda index: this)
        monkeypatch.setattr(_dispatch, "_MEASURED_DEVICES", ("cpu", "cuda"))
        monkeypatch.setattr(_dispatch, "_told", set())
        torch.compiler.reset()

    return put


def takes_triton(flops, operator="window_attention", dtype=torch.float32, learns=False, backend="auto", reason=None):
    x = torch.zeros(1, dtype=dtype, requires_grad=learns)
    return _dispatch.use_triton(operator, backend, (x,), reason, flops)


def test_table_of_the_package_is_valid():
    assert isinstance(_measured.table(), tuple)
    assert _measured.read(_measured.PATH) == _measured.table()


@pytest.mark.parametrize(
    ("flops", "size"), [(0, 0), (1, 0), (3, 0), (4, 1), (15, 1), (16, 2), (4**9, 9), (4**9 - 1, 8)]
)
def test_classes_of_size(flops, size):
    assert _measured.size_of(flops) == size


def test_triton_exactly_where_it_is_right_and_faster(measured):
    measured(
        card(
            GOOD,
            GOOD | dict(size=7, triton_ms=2.0),
            GOOD | dict(size=8, triton_error=2.1e-6),
            GOOD | dict(size=9, triton_error=2e-6),
            GOOD | dict(dtype="bfloat16", size=2),
            GOOD | {"pass": "backward", "size": 3},
        )
    )
    assert not takes_triton(4**6 - 1)
    assert takes_triton(4**6) and takes_triton(4**7 - 1)
    assert not takes_triton(4**7)  # as fast
    assert not takes_triton(4**8)  # wrong
    assert takes_triton(4**9)  # at the limit
    assert not takes_triton(4**10)  # not measured
    assert takes_triton(4**2, dtype=torch.bfloat16)
    assert not takes_triton(4**2) and not takes_triton(4**6, dtype=torch.bfloat16)
    assert takes_triton(4**3, learns=True) and not takes_triton(4**6, learns=True)
    with torch.no_grad():
        assert takes_triton(4**6, learns=True)
    assert not takes_triton(4**6, operator="routing_attention")
    assert not takes_triton(4**6, reason="too wide")
    assert not takes_triton(4**6, backend="torch")
    with kernels.use_backend("torch"):
        assert not takes_triton(4**6)


def test_empty_table_means_pytorch(measured):
    measured()
    assert not takes_triton(4**6)
    assert takes_triton(4**6, backend="triton")


@pytest.mark.parametrize(
    ("this", "size"),
    [
        (("NVIDIA B", (9, 0)), 2),  # itself, though another has the same capability
        (("NVIDIA Unknown", (9, 3)), 3),  # the nearest minor number
        (("NVIDIA Unknown", (9, 1)), 1),  # of those equally near the first by name
        (("NVIDIA Unknown", (8, 6)), 5),
        (("NVIDIA B", (8, 0)), 4),  # a name does not stand for another architecture
        (("NVIDIA Unknown", (10, 0)), None),
    ],
)
def test_unknown_cards_are_like_their_nearest_kin(measured, this, size):
    measured(
        card(GOOD | dict(size=1), name="NVIDIA A", capability=(9, 0)),
        card(GOOD | dict(size=2), name="NVIDIA B", capability=(9, 0)),
        card(GOOD | dict(size=3), name="NVIDIA C", capability=(9, 2)),
        card(GOOD | dict(size=4), name="NVIDIA D", capability=(8, 0)),
        card(GOOD | dict(size=5), name="NVIDIA E", capability=(8, 9)),
        this=this,
    )
    assert [x for x in range(1, 6) if takes_triton(4**x)] == ([] if size is None else [size])


def test_says_once_how_to_switch_triton_on(measured, caplog):
    measured()
    with caplog.at_level(logging.WARNING, "attnzoo"):
        takes_triton(1, reason="too wide")
        takes_triton(1, backend="torch")
        assert not caplog.records
        for operator in ("window_attention", "routing_attention", "window_attention"):
            takes_triton(1, operator=operator)
    (record,) = caplog.records
    assert record.name == "attnzoo"
    said = record.getMessage()
    assert 'use_backend("triton")' in said and "ATTNZOO_BACKEND=triton" in said and "window_attention" in said


def test_says_nothing_of_what_was_measured(measured, caplog):
    measured(card(GOOD | dict(triton_ms=3.0)))
    with caplog.at_level(logging.WARNING, "attnzoo"):
        assert not takes_triton(4**6)
    assert not caplog.records


def test_says_once_why_what_would_be_faster_does_not_run(measured, caplog):
    measured(card(GOOD))
    with caplog.at_level(logging.WARNING, "attnzoo"):
        assert not takes_triton(4**7, reason="too wide") and not takes_triton(4**6, backend="torch", reason="too wide")
        assert not caplog.records
        for reason in ("too wide", "too wide", "too deep"):
            assert not takes_triton(4**6, reason=reason)
    assert [record.getMessage() for record in caplog.records] == [
        f"window_attention runs in PyTorch, though Triton is faster at this size: {reason}"
        for reason in ("too wide", "too deep")
    ]


def test_the_cpu_says_nothing(monkeypatch, caplog):
    monkeypatch.setattr(_dispatch, "_told", set())
    with caplog.at_level(logging.WARNING, "attnzoo"):
        cases()["window"].call()
    assert not caplog.records


@pytest.mark.skipif(not _dispatch.INTERPRETED, reason="of the interpreter")
def test_operators_obey(measured, monkeypatch):
    """At one size Triton's kernel runs, at another PyTorch's."""
    calls = []
    attention = window_operator.attention
    public = sys.modules["attnzoo.kernels.window_attention"]
    monkeypatch.setattr(public, "attention", lambda *args: calls.append(1) or attention(*args))
    # 4 * B * H * W * C * keys
    small, large = ([x.float() for x in cases(1, side, side)["window"].tensors.values()] for side in (4, 8))
    flops = 4 * 8 * 8 * 16 * 4
    measured(card(GOOD | dict(size=_measured.size_of(flops))))
    with torch.no_grad():
        for tensors, expected in ((small, 0), (large, 1)):
            calls.clear()
            case = cases()["window"]
            torch.testing.assert_close(case.call(*tensors), case.call(*tensors, backend="torch"), rtol=1e-4, atol=1e-5)
            assert len(calls) == expected


@pytest.mark.long
@pytest.mark.skipif(not _dispatch.INTERPRETED, reason="of the interpreter")
def test_every_operator_is_looked_up_by_its_name(measured):
    """Every case is measured to be Triton's: the table's names are those that the operators use."""
    names = set()
    for name, case in cases().items():
        if not case.has_kernels:
            continue
        tensors = [x.float() for x in case.tensors.values()]
        measured(
            card(*(GOOD | dict(operator=operator, size=size) for operator in _measured.OPERATORS for size in range(30)))
        )
        asked = []
        spans = _dispatch._spans

        def record(operator, *args, asked=asked, spans=spans):
            asked.append(operator)
            return spans(operator, *args)

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(_dispatch, "_spans", record)
            got = case.call(*tensors)
        torch.testing.assert_close(got, case.call(*tensors, backend="torch"), rtol=1e-3, atol=1e-4)
        # Without a gate there is no kernel to ask for.
        assert asked or name == "pointwise"
        names |= set(asked)
    assert names == set(_measured.OPERATORS), "OPERATORS of kernels/_measured.py are not those that ask for Triton"


def graphs(function, *batches):
    """How many graphs serve these batches, each whole."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for batch in batches:
        with torch.no_grad():
            compiled(*(torch.randn(batch, 8, 8, 16) for _ in range(3)))
    return counter


def test_compiled_graphs_neither_break_nor_multiply(measured):
    """A class of size for every second batch: still no more graphs than without a table."""

    def function(q, k, v):
        return kernels.window_attention(q, k, v, 2, 4)

    batches = (1, 2, 3, 4, 8, 16, 5, 33)
    measured()
    without = graphs(function, *batches).frame_count
    measured(card(*(GOOD | dict(size=size) for size in range(0, 30, 2))))
    assert graphs(function, *batches).frame_count == without <= 3


@pytest.mark.skipif(not _dispatch.INTERPRETED, reason="of the interpreter")
def test_compiled_graph_holds_what_the_table_says(measured):
    """Of one size; with sizes left free nothing is known of the work, and PyTorch runs."""

    def operators(*batches):
        seen = []

        def backend(graph, inputs):
            seen.append({str(node.target) for node in graph.graph.nodes})
            return graph

        torch.compiler.reset()
        compiled = torch.compile(
            lambda q, k, v: kernels.window_attention(q, k, v, 2, 4), backend=backend, fullgraph=True
        )
        for batch in batches:
            with torch.no_grad():
                compiled(*(torch.randn(batch, 8, 8, 16) for _ in range(3)))
        return ["attnzoo.window_attention_triton" in " ".join(names) for names in seen]

    measured(card(*(GOOD | dict(size=size) for size in range(30))))
    assert operators(2, 3) == [True, False]
    measured(card(*(GOOD | dict(size=size, triton_ms=9.0) for size in range(30))))
    assert operators(2, 3) == [False, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", r"measured.json: must be an object, got \[\]"),
        ("{}", "must have cards, got nothing"),
        ('{"cards": {}}', "cards: must be a list"),
        ('{"cards": [], "more": 1}', "must have cards, got cards, more"),
        ('{"cards": [{"name": "A", "capability": [9, 0]}]}', r"cards\[0\]: must have name, capability, records"),
        ('{"cards": [{"name": 1, "capability": [9, 0], "records": []}]}', r"cards\[0\].name: must be text"),
        ('{"cards": [{"name": "A", "capability": [9], "records": []}]}', r"capability: must be \[major, minor\]"),
        ('{"cards": [{"name": "A", "capability": "90", "records": []}]}', "capability: must be a list"),
        ('{"cards": [{"name": "A", "capability": [9, true], "records": []}]}', "capability: must be an integer"),
        (
            '{"cards": [{"name": "A", "capability": [9, 0], "records": []},'
            ' {"name": "A", "capability": [8, 0], "records": []}]}',
            "'A' stands there twice",
        ),
    ],
)
def test_damaged_files(content, message, tmp_path):
    (tmp_path / "measured.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        _measured.read(tmp_path / "measured.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(operator="attention"), r"records\[0\].operator: must be one of .*window_attention, got 'attention'"),
        (dict(dtype="float64"), "dtype: must be one of float32, bfloat16, float16"),
        ({"pass": "both"}, "pass: must be one of forward, backward"),
        (dict(size=-1), "size: must be an integer from 0 to 63"),
        (dict(size=64), "size: must be an integer from 0 to 63"),
        (dict(size=2.0), "size: must be an integer"),
        (dict(triton_ms=-1), "triton_ms: must be a number of at least 0"),
        (dict(torch_ms="fast"), "torch_ms: must be a number"),
        (dict(torch_ms=float("nan")), "torch_ms: must be a number"),
        (dict(triton_error=float("inf")), "triton_error: must be a number"),
        (dict(torch_error=None), "torch_error: must be a number"),
        (dict(more=1), "must have operator, dtype, pass"),
    ],
)
def test_wrong_records(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        _measured.read(written(tmp_path, card(GOOD | change)))


def test_records_stand_once(tmp_path):
    with pytest.raises(ValueError, match="stands there twice"):
        _measured.read(written(tmp_path, card(GOOD, GOOD | dict(triton_ms=3.0))))
