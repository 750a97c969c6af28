"""`attnzoo bench kernels`: that all forms of an operator are the same function, what is measured and what is said."""

import json
from dataclasses import replace

import pytest
import torch

from attnzoo.tools import cli
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.measuring import kernels
from attnzoo.tools.measuring.cases import FORMS
from attnzoo.tools.measuring.operators import OPERATORS, cases, deformable_attention_3d

# Where the usual small image is no image of note.
SMALL = {"routing_attention": (56, 56), "neighborhood_attention": (112, 112), "deformable_attention_3d": (32, 32)}


def small(operator):
    """The operator's cases at a small size, uncompiled."""
    return list(cases(operator, (SMALL.get(operator, (32, 48)),), 1, lambda function: function))


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_form_is_the_same_function(operator, monkeypatch):
    """Of each kind of case the first; Triton's kernels have tests of their own."""
    monkeypatch.setattr(deformable_attention_3d, "QUERIES", 50)
    kinds = {}
    for case in small(operator):
        kinds.setdefault((case.operator, case.setting.partition(" stage ")[0], case.setting[-12:]), case)
    for case in kinds.values():
        assert {"triton", "twin", "definition", "compiled definition"} <= set(case.forms)
        assert set(case.forms | case.prepared) <= set(FORMS) and case.operations > 0
        tensors = case.tensors(torch.float32, "cpu")
        names = [name for name in case.forms if name not in ("triton", "flex", "natten")]
        forms, failed = kernels.ready(case, names, tensors)
        errors, wrong = kernels.check(case, forms, tensors, "float32")
        assert not failed | wrong, (case.setting, failed, wrong)
        assert errors.keys() == forms.keys() and max(errors.values()) < 1e-4
        if "flex" in case.forms | case.prepared:
            # It has no gradients on the CPU.
            with torch.no_grad():
                plain = [x.detach() for x in tensors]
                torch.testing.assert_close(case.form("flex", plain)(*plain), case.forms["definition"](*plain))
        forward, backward = case.work(torch.float32)
        assert min(forward.flops, backward.flops) > 0 and 0 < forward.bytes < backward.bytes


def test_what_is_wrong_is_found():
    case = small("deformable_attention")[1]
    tensors = case.tensors(torch.float32, "cpu")
    wrong = {"sdpa": lambda *x: case.forms["definition"](*x) * 1.01}
    _, failed = kernels.check(case, wrong, tensors, "float32")
    assert failed == {"sdpa": "error 1.0e-02"}
    with pytest.raises(UserError, match=r"DINO decoder.*twin fails: error 1\.0e-02"):
        kernels.check(case, {"twin": wrong["sdpa"]}, tensors, "float32")
    # A gradient alone, too.
    wrong = {"twin": lambda value, *x: case.forms["definition"](value.detach() + 0 * value, *x)}
    with pytest.raises(UserError, match="twin fails: error"):
        kernels.check(replace(case), wrong, tensors, "float32")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One small run through the command line, and what it printed."""
    path = tmp_path_factory.mktemp("bench") / "kernels.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_CPU_IMAGE", SMALL["deformable_attention_3d"])
        patch.setattr(deformable_attention_3d, "QUERIES", 50)
        command = ["bench", "kernels", "--operators", "deformable_attention_3d", "--cpu", "--repeat", "2"]
        assert cli.main([*command, "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.slow
def test_measures_on_the_cpu(report):
    rows = report["results"]["operators"]
    assert [row["pass"] for row in rows] == ["forward", "backward"]
    for row in rows:
        assert row["forms"].keys() == {"twin", "definition"}
        for took in row["forms"].values():
            assert len(took["milliseconds"]) == 2 and 0 < took["q1"] <= took["median"] <= took["q3"]
            assert took["error"] < 1e-4 and took["peak_bytes"] >= 0
        # The volume that the twin never builds: (8 heads x 32 channels x 64 bins) at each of 21 positions.
        assert row["forms"]["definition"]["peak_bytes"] > 16 * 8 * 32 * 64 * 4
        assert row["h100_roofline_milliseconds"] > 0
    assert report["versions"]["torch"] and report["device"] and report["clock"] == "wall"
    assert [step["model"] for step in report["results"]["steps"]] == list(kernels.STEPS)


@pytest.mark.slow
def test_says_what_is_not_measured(report):
    rows = report["results"]["operators"]
    line = kernels.table(rows).splitlines()[2]
    # Triton, compiled definition, sdpa, flex, natten, mmcv, deformops and the share of the roofline.
    assert line.count("not measured") == 8
    assert f"{rows[0]['forms']['twin']['median']:.3g}" in line
    assert kernels.steps_table(report["results"]["steps"]).count("not measured") == 4 * len(kernels.STEPS)


def test_parts_table():
    part = dict(least_bytes=640)
    row = dict(setting="BiFormer-S stage 1", image=(512, 512), dtype="bfloat16", parts={"inverted index": part})
    (line,) = kernels.parts_table([dict(row, parts={}), row]).splitlines()[2:]
    assert "640" in line and line.count("not measured") == 2
    part |= dict(median=0.02, q1=0.01, q3=0.03)
    (line,) = kernels.parts_table([row | dict(forms=dict(triton=dict(median=0.5)))]).splitlines()[2:]
    assert "0.02 (0.01-0.03)" in line and "4.0%" in line
    assert kernels.parts_table([dict(row, parts={})]) == ""


def test_parts_run():
    case = small("routing_attention")[1]
    ((prepare, least),) = case.parts.values()
    _, numbers = prepare(*case.tensors(torch.float32, "cpu"))()
    assert numbers.sum() == 49 * 4 and least == (2 * 49 * 4 + 49) * 4


def test_unknown_operator():
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "kernels", "--operators", "attention"])
    assert stop.value.code == 2
