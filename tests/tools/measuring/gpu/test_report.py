"""What a run on a GPU says: the table for people and the records that "auto" obeys."""

import json

import pytest

from attnzoo.kernels import _measured
from attnzoo.tools.measuring.gpu import report
from attnzoo.tools.measuring.gpu.checks import outcomes
from attnzoo.tools.measuring.gpu.counters import METRICS, read_counters
from attnzoo.tools.measuring.gpu.results import Results

PLACE = dict(operator="window_attention", setting="Swin-T stage 1", image=[224, 224], dtype="bfloat16")


@pytest.fixture
def results(tmp_path):
    found = Results(tmp_path)
    found.add("card", name="NVIDIA H100 80GB HBM3", capability=[9, 0], versions={"torch": "2.11.0"})
    found.add("ceilings", copy_bytes_per_second=3e12, bf16_flops=8e14)
    return found


def add_error(results, triton, twin, **replaced):
    forms = {
        name: {"forward": forward, "backward": backward}
        for name, (forward, backward) in {"triton": triton, "twin": twin}.items()
    }
    results.add("error", **PLACE | replaced, forms=forms, runs_alike=True)


def add_times(results, kind, batch=64, operations=4**15, **milliseconds):
    for form, (graph, plain) in milliseconds.items():
        results.add(
            "time", **PLACE, batch=batch, **{"pass": kind}, operations=operations, form=form, graph_ms=graph,
            plain_ms=plain, peak_bytes=10, least_bytes=3e9, least_flops=8e10,
        )  # fmt: skip


def test_records_take_plain_calls_and_the_errors_of_the_subject(results):
    add_error(results, (1e-3, 3e-3), (2e-3, 2e-3))
    add_times(results, "forward", triton=(1.0, 1.5), twin=(2.0, 2.5), sdpa=(0.1, 0.1))
    add_times(results, "backward", triton=(3.0, 3.5), twin=(4.0, 4.5))
    first, second = report.records(results)
    assert second == {
        "operator": "window_attention",
        "dtype": "bfloat16",
        "pass": "forward",
        "size": 15,
        "triton_ms": 1.5,
        "torch_ms": 2.5,
        "triton_error": 1e-3,
        "torch_error": 2e-3,
    }
    assert first["pass"] == "backward" and first["triton_error"] == 3e-3


def test_of_a_class_of_sizes_the_least_favourable_counts(results):
    add_error(results, (1e-3, 1e-3), (1e-3, 1e-3))
    add_times(results, "forward", triton=(1.0, 1.0), twin=(3.0, 3.0))
    add_times(results, "forward", batch=32, operations=4**15 + 7, triton=(2.0, 2.0), twin=(1.0, 1.0))
    add_times(results, "forward", batch=16, operations=4**14, triton=(1.0, 1.0), twin=(9.0, 9.0))
    assert [(x["size"], x["triton_ms"], x["torch_ms"]) for x in report.records(results)] == [(14, 1, 9), (15, 2, 1)]


def test_nothing_is_recorded_without_an_error_or_the_other_form(results):
    add_times(results, "forward", triton=(1.0, 1.0), twin=(3.0, 3.0))
    assert report.records(results) == [] and report.write_measured(results, results.folder / "measured.json") is None
    add_error(results, (1e-3, 1e-3), (1e-3, 1e-3))
    assert len(report.records(results)) == 1
    add_times(results, "backward", triton=(1.0, 1.0))
    assert len(report.records(results)) == 1


def test_other_cards_stay_in_the_table_and_this_one_is_replaced(results, tmp_path):
    add_error(results, (1e-3, 1e-3), (1e-3, 1e-3))
    add_times(results, "forward", triton=(1.0, 1.0), twin=(3.0, 3.0))
    (record,) = report.records(results)
    known = tmp_path / "known.json"
    old = dict(capability=[9, 0], records=[record | dict(torch_ms=0.5)])
    known.write_text(
        json.dumps({"cards": [dict(name="NVIDIA H100 80GB HBM3", **old), dict(name="NVIDIA H200", **old)]})
    )
    path = report.write_measured(results, tmp_path / "measured.json", known)
    first, second = _measured.read(path)
    assert (first.name, first.records[0].torch_ms) == ("NVIDIA H100 80GB HBM3", 3.0)
    assert (second.name, second.records[0].torch_ms) == ("NVIDIA H200", 0.5)


def test_the_summary_says_what_is_wrong_and_what_is_fast(results):
    add_error(results, (1e-3, 9e-2), (2e-3, 2e-3))
    add_times(results, "forward", triton=(2.0, 2.5), twin=(3.0, 3.0), sdpa=(5.0, 1.0), flex=(4.0, 9.0))
    results.add("time", **PLACE, form="mmcv", failed="RuntimeError: no kernel of bfloat16")
    results.add("phase", phase="steps", failed="out of time")
    for variant, chosen, forward, backward in (("a", True, 1.0, 2.0), ("b", False, 0.99, 1.5), ("c", False, 1.2, 1.8)):
        results.add(
            "sweep", setting="Swin-T stage 1", dtype="bfloat16", variant=variant, chosen=chosen, forward_ms=forward,
            backward_ms=backward,
        )  # fmt: skip
    results.add("step", model="van_b2", way="triton", compiled=True, ms=12.3, peak_bytes=4e6)
    text = report.summary(results)
    assert "NVIDIA H100 80GB HBM3, torch 2.11.0, copy 3.00 TB/s, bf16 product 800 TFLOP/s" in text
    assert "not right: Swin-T stage 1, bfloat16, backward: error 9.0e-02, PyTorch's 2.0e-03" in text
    assert "not right: Swin-T stage 1, bfloat16, forward" not in text
    assert "Swin-T stage 1, bfloat16, mmcv: RuntimeError: no kernel of bfloat16" in text
    assert "phase steps: out of time" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| Swin-T")]
    # 3 GB at 3 TB/s are 1 ms, of 2.
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[3:] == ["2", "3", "flex 4", "2.00", "50%"]
    assert "tiles: Swin-T stage 1, bfloat16, backward: b: 2 to 1.5 ms" in text and "bfloat16, forward: b" not in text
    assert "van_b2 compiled: triton 12.3 ms, 4 MB" in text


def test_the_summary_is_short(results):
    add_error(results, (1e-3, 1e-3), (1e-3, 1e-3))
    for batch in range(40):
        add_times(results, "forward", batch=batch, triton=(1.0, 1.0), twin=(2.0, 2.0))
        results.failed("time", ValueError("no"), form=str(batch))
        results.add("step", model=f"m{batch}", way="triton", compiled=False, ms=1.0, peak_bytes=0)
    results.add("tests", tests=99, passed=0, skipped=0, failed={str(i): "no" for i in range(99)})
    assert len(report.summary(results).splitlines()) <= report.LINES


def test_outcomes_of_tests(tmp_path):
    report_file = tmp_path / "tests.xml"
    assert outcomes(report_file) == {}
    report_file.write_text(
        '<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="4">'
        '<testcase classname="a.b" name="good"/><testcase classname="a.b" name="left"><skipped/></testcase>'
        '<testcase classname="a.b" name="bad"><failure message="assert 1 == 2">long</failure></testcase>'
        '<testcase classname="a.b" name="worse"><error message="fixture"/></testcase></testsuite></testsuites>'
    )
    assert outcomes(report_file) == {
        "tests": 4,
        "skipped": 1,
        "passed": 1,
        "failed": {"a.b::bad": "assert 1 == 2", "a.b::worse": "fixture"},
    }


def test_counters_of_the_profiler():
    lines = [
        "==PROF== Connected to process 1",
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"',
        f'"0","_forward_kernel","{METRICS["issue_percent"]}","%","61.5"',
        f'"0","_forward_kernel","{METRICS["microseconds"]}","ns","1,234,000"',
        f'"1","_means_kernel","{METRICS["registers"]}","register/thread","48"',
        '"1","_means_kernel","something else","","1"',
    ]
    assert read_counters("\n".join(lines)) == [
        {"kernel": "_forward_kernel", "issue_percent": 61.5, "microseconds": 1234.0},
        {"kernel": "_means_kernel", "registers": 48.0},
    ]
    assert read_counters("==ERROR== no permission") == []
