"""Kernels compiled for sm_80 and sm_90 without a GPU: nothing is spilled, shared memory suffices."""

import json
import os
import subprocess
import sys

import pytest

from attnzoo.kernels._static import CAPABILITIES, MAX_SHARED
from attnzoo.tools.measuring.kernels import STATIC_PACKAGES

pytest.importorskip("triton")

# Under the interpreter, which the other tests need, there is nothing to compile.
PROGRAM = """
import importlib, json, sys
from attnzoo.kernels import _static
found = {}
for package in sys.argv[2:]:
    cases = importlib.import_module(f"attnzoo.kernels.{package}.triton").static_cases()
    # The tiles of float32 need most registers.
    first = next(case for case in cases if case.dtype == "fp32")
    rows = []
    for case in cases if sys.argv[1] == "all" else [first]:
        for capability in _static.CAPABILITIES:
            result = _static.compile_static(case, capability)
            name = f"{case.kernel.__name__}, {case.dtype}, {case.label}, sm_{capability}"
            rows.append((name, capability, result.registers, result.shared, result.spilled))
    found[package] = rows, [(case.operator, case.kernel.__name__, case.dtype, case.label) for case in cases]
print(json.dumps(found))
"""


def compiled(which, *packages):
    """Of each package what was compiled, and the kinds of its cases."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, which, *packages],
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


def test_every_kernel_and_dtype_has_cases_and_the_first_compiles():
    found = compiled("first", *STATIC_PACKAGES)
    assert set(found) == set(STATIC_PACKAGES)
    for rows, kinds in found.values():
        assert len(rows) == len(CAPABILITIES)
        check(rows)
        for kernel in {kernel for _, kernel, _, _ in kinds}:
            assert {dtype for _, name, dtype, _ in kinds if name == kernel} == {"fp32", "bf16", "fp16"}, kernel
        assert len(kinds) == len(set(map(tuple, kinds)))


@pytest.mark.slow
@pytest.mark.parametrize("package", STATIC_PACKAGES)
def test_every_case_compiles(package):
    ((rows, kinds),) = compiled("all", package).values()
    assert len(rows) == len(kinds) * len(CAPABILITIES)
    check(rows)
