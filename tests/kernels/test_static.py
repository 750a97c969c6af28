"""Kernels compiled for sm_80 and sm_90 without a GPU: nothing is spilled, shared memory suffices."""

import functools
import json
import os
import subprocess
import sys

import pytest

from attnzoo.kernels._static import CAPABILITIES, MAX_SHARED
from attnzoo.tools.bench_kernels import STATIC_PACKAGES

pytest.importorskip("triton")

# Under the interpreter, which the other tests need, there is nothing to compile.
PROGRAM = """
import importlib, json, sys
from attnzoo.kernels import _static
cases = importlib.import_module(f"attnzoo.kernels.{sys.argv[1]}.triton").static_cases()
chosen = range(len(cases)) if sys.argv[2] == "all" else map(int, sys.argv[2].split(","))
rows = []
for number in [] if sys.argv[2] == "none" else chosen:
    case = cases[number]
    for capability in _static.CAPABILITIES:
        result = _static.compile_static(case, capability)
        name = f"{case.kernel.__name__}, {case.dtype}, {case.label}, sm_{capability}"
        rows.append((name, capability, result.registers, result.shared, result.spilled))
kinds = [(case.operator, case.kernel.__name__, case.dtype, case.label) for case in cases]
print(json.dumps({"rows": rows, "kinds": kinds}))
"""


def compiled(package, chosen):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, package, chosen],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@functools.cache
def kinds(package):
    return compiled(package, "none")["kinds"]


def check(rows):
    for name, capability, registers, shared, spilled in rows:
        assert spilled == 0, f"{name}: {spilled} bytes spilled"
        assert shared <= MAX_SHARED[capability], f"{name}: {shared} bytes of shared memory"
        assert 0 < registers <= 255, name


@pytest.mark.parametrize("package", STATIC_PACKAGES)
def test_every_kernel_and_dtype_has_cases(package):
    found = kinds(package)
    kernels = {kernel for _, kernel, _, _ in found}
    for kernel in kernels:
        assert {dtype for _, name, dtype, _ in found if name == kernel} == {"fp32", "bf16", "fp16"}, kernel
    assert len(found) == len(set(map(tuple, found)))


@pytest.mark.parametrize("package", STATIC_PACKAGES)
def test_one_case_of_each_kernel(package):
    """In float32, whose tiles need most registers."""
    found = kinds(package)
    chosen = {}
    for number, (_, kernel, dtype, _) in enumerate(found):
        if dtype == "fp32":
            chosen.setdefault(kernel, number)
    result = compiled(package, ",".join(map(str, chosen.values())))
    assert len(result["rows"]) == len(chosen) * len(CAPABILITIES)
    check(result["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("package", STATIC_PACKAGES)
def test_all_cases(package):
    result = compiled(package, "all")
    assert len(result["rows"]) == len(result["kinds"]) * len(CAPABILITIES)
    check(result["rows"])
