"""Ahead-of-time compilation of Triton kernels, on machines without a GPU too: registers, shared memory, spills."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...kernels import _dispatch

CAPABILITIES = (80, 90)
# What a block may use, bytes: CUDA C Programming Guide, table of technical specifications.
MAX_SHARED = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class StaticCase:
    """One kernel with all that fixes its machine code.

    Attributes:
        operator: e.g. "routing_attention".
        kernel: the function decorated by `triton.jit`.
        dtype: of the tensors, "fp32", "bf16" or "fp16".
        label: what distinguishes the case, e.g. "head_dim 32".
        signature: type of each argument that is no constant, in order, e.g. {"q": "*bf16", "height": "i32"}.
        constants: value of each `tl.constexpr`.
        num_warps: of a block.
        num_stages: of the software pipeline.
        multiples: names of the integers that a launch finds to be multiples of 16, such as strides.
    """

    operator: str
    kernel: Any
    dtype: str
    label: str
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    multiples: tuple[str, ...] = ()


@dataclass(frozen=True)
class StaticResult:
    """What the compiler says of a `StaticCase` on one architecture.

    Attributes:
        case: that was compiled.
        capability: 80 for sm_80.
        registers: of a thread.
        shared: memory of a block, bytes.
        spilled: stack of a thread, bytes: the kernels have no arrays, so it holds what registers could not.
    """

    case: StaticCase = field(repr=False)
    capability: int
    registers: int
    shared: int
    spilled: int


def compile_static(case: StaticCase, capability: int) -> StaticResult:
    """Compiles a kernel for `sm_<capability>` as its launch would, pointers aligned to 16 bytes.

    Raises:
        RuntimeError: under Triton's interpreter, which leaves nothing to compile.
    """
    if _dispatch.INTERPRETED:
        raise RuntimeError("kernels are not compiled under Triton's interpreter: unset TRITON_INTERPRET")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or name in case.multiples
    }
    source = ASTSource(case.kernel, signature, case.constants, aligned)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(compiled.asm["cubin"])
    return StaticResult(case, capability, registers, compiled.metadata.shared, spilled)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and the bytes that it keeps in memory for want of more, by the tool that Triton brings."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump says neither registers nor stack: {said}")
    return int(found[1]), int(found[2])
