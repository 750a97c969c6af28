"""Kernels compiled for sm_80 and sm_90 without a GPU: nothing is spilled, shared memory suffices."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attnzoo import kernels
from attnzoo.tools import cli
from attnzoo.tools.measuring import static
from attnzoo.tools.measuring.compilation import CAPABILITIES, MAX_SHARED
from attnzoo.tools.measuring.operators import OPERATORS

pytest.importorskip("triton")

# Under the interpreter, which the other tests need, there is nothing to compile.
PROGRAM = """
import json, sys
from attnzoo.tools.measuring.compilation import CAPABILITIES, compile_static
from attnzoo.tools.measuring.operators import static_cases
found = {}
for operator in sys.argv[2:]:
    cases = static_cases(operator)
    assert cases, f"static_cases() of tools/measuring/operators/{operator}.py gives none"
    # The tiles of float32 need most registers.
    first = next(case for case in cases if case.dtype == "fp32")
    rows = []
    for case in cases if sys.argv[1] == "all" else [first]:
        for capability in CAPABILITIES:
            result = compile_static(case, capability)
            name = f"{case.kernel.__name__}, {case.dtype}, {case.label}, sm_{capability}"
            rows.append((name, capability, result.registers, result.shared, result.spilled))
    found[operator] = rows, [(case.operator, case.kernel.__name__, case.dtype, case.label) for case in cases]
print(json.dumps(found))
"""


def compiled(which, *operators):
    """Of each operator what was compiled, and the kinds of its cases."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, which, *operators],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(rows):
    assert rows
    for name, capability, registers, shared, spilled in rows:
        assert spilled == 0, f"{name}: {spilled} bytes spilled"
        assert shared <= MAX_SHARED[capability], f"{name}: {shared} bytes of shared memory"
        assert 0 < registers <= 255, name


@pytest.mark.long
def test_every_kernel_and_dtype_has_cases_and_the_first_compiles():
    found = compiled("first", *OPERATORS)
    assert set(found) == set(OPERATORS)
    for operator, (rows, kinds) in found.items():
        assert {name for name, _, _, _ in kinds} == {operator}
        assert len(rows) == len(CAPABILITIES)
        check(rows)
        source = Path(kernels.__file__).parent / operator / "triton.py"
        # Those of three dimensions are those of two.
        written = set(re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.M)) if source.is_file() else set()
        missing = written - {kernel for _, kernel, _, _ in kinds}
        assert not missing, f"static_cases() of tools/measuring/operators/{operator}.py lacks {missing}"
        for kernel in {kernel for _, kernel, _, _ in kinds}:
            assert {dtype for _, name, dtype, _ in kinds if name == kernel} == {"fp32", "bf16", "fp16"}, kernel
        assert len(kinds) == len(set(map(tuple, kinds)))


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_case_compiles(operator):
    ((rows, kinds),) = compiled("all", operator).values()
    assert len(rows) == len(kinds) * len(CAPABILITIES)
    check(rows)


def test_table_tells_the_largest_figures_of_a_kernel():
    row = dict(operator="x", kernel="_k", case="c", dtype="bf16", warps=4, stages=2)
    figures = [(80, 64, 1024, 0), (90, 70, 512, 0), (80, 60, 2048, 8), (90, 80, 256, 0)]
    rows = [
        row | dict(capability=capability, registers=registers, shared=shared, spilled=spilled)
        for capability, registers, shared, spilled in figures
    ]
    lines = static.table([*rows, *(x | dict(dtype="fp32") for x in rows[:2])]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4]]
    assert cells == [
        ["x", "_k", "bf16", "2", "64", "2048", "8", "80", "512", "0"],
        ["x", "_k", "fp32", "1", "64", "1024", "0", "70", "512", "0"],
    ]
    assert lines[-1] == "6 compilations, 1 with spills"


def test_needs_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr("attnzoo.kernels._dispatch.INTERPRETED", True)
    assert cli.main(["bench", "kernels", "--static"]) == 2
    assert "TRITON_INTERPRET=1 interprets: unset it" in capsys.readouterr().err
