"""Kernels compiled for sm_80 and sm_90 without a GPU: nothing is spilled, shared memory suffices."""

import dataclasses
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
from attnzoo.tools.measuring.compilation import (
    CAPABILITIES,
    MAX_SHARED,
    StaticCase,
    StaticResult,
    count_instructions,
)
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
        # Of three dimensions there are none: they are those of two.
        sources = (Path(kernels.__file__).parent / operator).glob("triton*.py")
        written = {name for x in sources for name in re.findall(r"^def (\w+_kernel)\(", x.read_text(), re.M)}
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
    figures = [(80, 64, 1024, 0, 9.0), (90, 70, 512, 0, 0.0), (80, 60, 2048, 8, 10.25), (90, 80, 256, 0, 0.0)]
    rows = [
        row | dict(capability=capability, registers=registers, shared=shared, spilled=spilled, per_element=per_element)
        for capability, registers, shared, spilled, per_element in figures
    ]
    lines = static.table([*rows, *(x | dict(dtype="fp32") for x in rows[:2])]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4]]
    assert cells == [
        ["x", "_k", "bf16", "2", "64", "2048", "8", "9.0 to 10.2", "80", "512", "0", "not counted"],
        ["x", "_k", "fp32", "1", "64", "1024", "0", "9.0 to 9.0", "70", "512", "0", "not counted"],
    ]
    assert lines[-1] == "6 compilations, 1 with spills"


def test_instructions_of_a_program_and_of_its_longest_innermost_loop():
    lines = [
        "0000 MOV R1, c[0x0][0x28] ;",
        # Of a loop around two others.
        "0010 @!P0 IADD3 R2, R2, 0x1, RZ ;",
        "0020 FFMA R3, R4, R5, R3 ;",
        "0030 @P1 BRA 0x20 ;",
        "0040 FFMA R3, R4, R5, R3 ;",
        "0050 FFMA R6, R4, R5, R6 ;",
        "0060 @!UP2 BRA 0x40 ;",
        "0070 @P0 BRA 0x10 ;",
        "0080 @P3 BRA 0xa0 ;",
        "0090 EXIT ;",
        "00a0 BRA 0xa0;",
        "00b0 NOP;",
    ]
    sass = "".join(f"        /*{line[:4]}*/                   {line[5:]}     /* 0x0000 */\n" for line in lines)
    assert count_instructions(sass) == (11, 3)
    assert count_instructions(sass[: sass.index("0030") - 10]) == (3, 0)


def test_instructions_per_element_count_every_step():
    case = StaticCase("x", None, "bf16", "c", {}, {}, num_warps=2, steps=5, elements=64)
    assert StaticResult(case, 80, 64, 0, 0, instructions=30, loop=10).per_element == 70
    assert StaticResult(case, 80, 64, 0, 0, instructions=30, loop=0).per_element == 30
    assert StaticResult(dataclasses.replace(case, elements=0), 80, 64, 0, 0, 30, 10).per_element == 0


def test_needs_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr("attnzoo.kernels._dispatch.INTERPRETED", True)
    assert cli.main(["bench", "kernels", "--static"]) == 2
    assert "TRITON_INTERPRET=1 interprets: unset it" in capsys.readouterr().err
