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
        steps: of its innermost loop with most instructions, that a program makes which has nothing to mask; 0 where
            it has no loop.
        elements: that are of use to the operator, of those which such a program computes: pairs of a query and a key
            that it sees, products of a tap and a number, channels of a sample; 0 where nothing is to be counted.
        maxnreg: registers of a thread at most; None where the compiler chooses.
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
    steps: int = 0
    elements: int = 0
    maxnreg: int | None = None


@dataclass(frozen=True)
class StaticResult:
    """What the compiler says of a `StaticCase` on one architecture.

    Attributes:
        case: that was compiled.
        capability: 80 for sm_80.
        registers: of a thread.
        shared: memory of a block, bytes.
        spilled: stack of a thread, bytes: the kernels have no arrays, so it holds what registers could not.
        instructions: of the program.
        loop: instructions of its innermost loop that has most, 0 without a loop.
    """

    case: StaticCase = field(repr=False)
    capability: int
    registers: int
    shared: int
    spilled: int
    instructions: int
    loop: int

    @property
    def per_element(self) -> float:
        """Instructions of a thread for each element of use, as if every branch were taken; 0 where none are counted."""
        if self.case.elements == 0:
            return 0.0
        executed = self.instructions + (self.case.steps - 1 if self.loop else 0) * self.loop
        return executed * self.case.num_warps * 32 / self.case.elements


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
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.maxnreg}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    said = _dumped(compiled.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump says neither registers nor stack: {said}")
    instructions, loop = count_instructions(said)
    return StaticResult(case, capability, int(found[1]), compiled.metadata.shared, int(found[2]), instructions, loop)


def _dumped(cubin: bytes) -> str:
    """Resources and instructions of a compiled kernel, by the tool that Triton brings."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [str(tool), "--dump-resource-usage", "--dump-sass", file.name], check=True, capture_output=True, text=True
        ).stdout


# An address, what it depends on, the operation and its operands.
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*([^;]*);", re.M)


def count_instructions(sass: str) -> tuple[int, int]:
    """Instructions of a program, without those that fill it up, and of its innermost loop with most of them.

    Args:
        sass: as `cuobjdump --dump-sass` prints it.
    """
    found = [(int(at, 16), name.split(".")[0], rest) for at, name, rest in _INSTRUCTION.findall(sass)]
    found = [x for x in found if x[1] != "NOP"]
    loops = []
    for at, name, rest in found:
        target = re.search(r"0x([0-9a-f]+)", rest) if name == "BRA" else None
        # A branch to itself ends a program.
        if target and int(target[1], 16) < at:
            loops.append((int(target[1], 16), at))
    inner = [
        loop
        for loop in loops
        if not any(loop[0] <= low and high <= loop[1] for low, high in loops if (low, high) != loop)
    ]
    return len(found), max((sum(low <= at <= high for at, _, _ in found) for low, high in inner), default=0)
