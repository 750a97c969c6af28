"""What the compiler says of the kernels of `attnzoo bench kernels --static`: registers, memory, instructions."""

from __future__ import annotations

import importlib.util
from typing import Any

from ..common.errors import UserError
from ..common.progress import bar
from .operators import static_cases
from .tables import markdown


def compile_all(operators: list[str]) -> list[dict[str, Any]]:
    """Registers, shared memory, spills and instructions of every kernel on sm_80 and sm_90.

    Raises:
        UserError: under Triton's interpreter, or without Triton.
    """
    from ...kernels import _dispatch
    from .compilation import CAPABILITIES, compile_static

    if importlib.util.find_spec("triton") is None:
        raise UserError("--static needs Triton: pip install triton")
    if _dispatch.INTERPRETED:
        raise UserError("--static compiles kernels, which TRITON_INTERPRET=1 interprets: unset it")
    todo = [case for name in operators for case in static_cases(name)]
    rows = []
    with bar(total=len(todo) * len(CAPABILITIES), title="compile", leave=False) as progress:
        for case in todo:
            for capability in CAPABILITIES:
                result = compile_static(case, capability)
                rows.append(
                    {
                        "operator": case.operator,
                        "kernel": case.kernel.__name__,
                        "case": case.label,
                        "dtype": case.dtype,
                        "warps": case.num_warps,
                        "stages": case.num_stages,
                        "capability": capability,
                        "registers": result.registers,
                        "shared": result.shared,
                        "spilled": result.spilled,
                        "instructions": result.instructions,
                        "loop": result.loop,
                        "per_element": result.per_element,
                    }
                )
                progress.update()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, a line for each kernel and dtype: its cases, and the largest figures of all of them."""
    kinds: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["operator"], row["kernel"], row["dtype"]), []).append(row)
    capabilities = sorted({row["capability"] for row in rows})
    heads = ["operator", "kernel", "dtype", "cases"]
    for capability in capabilities:
        heads += [f"sm_{capability}: registers", "shared (bytes)", "spilled (bytes)", "instructions per element"]
    lines = []
    for kind, own in kinds.items():
        cells = [*kind, str(len(own) // len(capabilities))]
        for capability in capabilities:
            on = [row for row in own if row["capability"] == capability]
            cells += [str(max(row[key] for row in on)) for key in ("registers", "shared", "spilled")]
            least, most = (pick(row["per_element"] for row in on) for pick in (min, max))
            cells.append(f"{least:.1f} to {most:.1f}" if most else "not counted")
        lines.append(cells)
    spilling = sum(row["spilled"] > 0 for row in rows)
    return f"{markdown(heads, lines, left=3)}\n\n{len(rows)} compilations, {spilling} with spills"
