"""What a run found: a table for people, and the card's entry of `kernels/measured.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ....kernels import _measured
from ...common.files import write_json
from ..tables import markdown
from .results import Results

LINES = 60
_OWN = ("triton", "twin")
Row = dict[str, Any]


def summary(results: Results) -> str:
    """At most 60 lines: the card, what failed, times beside the best competitor's, the best tiles, whole models."""
    parts = [_card(results), _tests(results), _failures(results), _times(results), _tiles(results), _steps(results)]
    lines = "\n\n".join(filter(None, parts)).splitlines()
    left_out = len(lines) - LINES
    return "\n".join(lines if left_out <= 0 else [*lines[: LINES - 1], f"({left_out + 1} lines are left out)"])


def _card(results: Results) -> str:
    words = []
    for row in results.read("card"):
        if "name" in row:
            words += [row["name"], *(f"{name} {version}" for name, version in row["versions"].items())]
    for row in results.read("ceilings"):
        if "bf16_flops" in row:
            words.append(f"copy {row['copy_bytes_per_second'] / 1e12:.2f} TB/s")
            words.append(f"bf16 product {row['bf16_flops'] / 1e12:.0f} TFLOP/s")
    return ", ".join(words)


def _tests(results: Results) -> str:
    lines = []
    for row in results.read("tests"):
        if "tests" in row:
            lines.append(f"tests: {row['passed']} passed, {len(row['failed'])} failed, {row['skipped']} skipped")
            lines += [f"  {name}: {message[:80]}" for name, message in list(row["failed"].items())[:6]]
    return "\n".join(lines)


def _failures(results: Results) -> str:
    lines = []
    for row in results.read():
        if "failed" in row and row["kind"] != "tests":
            about = [
                str(row[key]) for key in ("phase", "subject", "setting", "dtype", "form", "what", "model") if key in row
            ]
            lines.append(f"{row['kind']} {', '.join(about)}: {str(row['failed'])[:90]}")
    for row in results.read("error"):
        for kind in _measured.PASSES if "forms" in row else ():
            own, other = (row["forms"][name][kind] for name in _OWN)
            if not own <= 2 * other:
                what = f"{row['setting']}, {row['dtype']}, {kind}"
                lines.append(f"not right: {what}: error {own:.1e}, PyTorch's {other:.1e}")
    return "\n".join([*lines[:10], *([f"({len(lines) - 10} more in results.jsonl)"] if len(lines) > 10 else [])])


def _times(results: Results) -> str:
    rows = []
    for subject, forms in _by_subject(results).items():
        if not {"triton"} <= forms.keys() or len(forms) < 2:
            continue
        setting, batch, dtype, kind = subject
        ours = _ms(forms["triton"])
        rivals = {name: _ms(form) for name, form in forms.items() if name not in _OWN}
        best = min(rivals, key=lambda name: rivals[name], default=None)
        cells = [f"{setting}, batch {batch}", dtype, kind, f"{ours:.3g}"]
        cells.append(f"{_ms(forms['twin']):.3g}" if "twin" in forms else "")
        cells += [f"{best} {rivals[best]:.3g}", f"{rivals[best] / ours:.2f}"] if best else ["", ""]
        floor = _floor(forms["triton"], results)
        cells.append("" if floor is None else f"{floor / ours:.0%}")
        rows.append(cells)
    heads = ["subject", "dtype", "pass", "triton (ms)", "PyTorch", "best of the others", "ratio", "of the ceiling"]
    return markdown(heads, rows[:30], left=3) if rows else ""


def _ms(row: Row) -> float:
    return float(row["graph_ms"] if "graph_ms" in row else row["plain_ms"])


def _floor(row: Row, results: Results) -> float | None:
    """Least milliseconds at the rates that this card reached, None where these are not known."""
    for found in results.read("ceilings"):
        if "bf16_flops" in found:
            seconds = row["least_bytes"] / found["copy_bytes_per_second"]
            if row["dtype"] != "float32":
                seconds = max(seconds, row["least_flops"] / found["bf16_flops"])
            return float(1e3 * seconds)
    return None


def _by_subject(results: Results) -> dict[tuple[str, int, str, str], dict[str, Row]]:
    found: dict[tuple[str, int, str, str], dict[str, Row]] = {}
    for row in results.read("time"):
        if "plain_ms" in row:
            key = (f"{row['setting']}, {row['image'][0]}x{row['image'][1]}", row["batch"], row["dtype"], row["pass"])
            found.setdefault(key, {})[row["form"]] = row
    return found


def _tiles(results: Results) -> str:
    """Of each subject's variants the best, where it gains 3 % and more on the tiles that the kernels choose."""
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in results.read("sweep"):
        if "backward_ms" in row:
            rows.setdefault((row["setting"], row["dtype"]), []).append(row)
    lines = []
    for (setting, dtype), tried in rows.items():
        chosen = next((row for row in tried if row["chosen"]), None)
        if chosen is None:
            continue
        for kind in _measured.PASSES:
            best = min(tried, key=lambda row: row[f"{kind}_ms"])
            before, after = chosen[f"{kind}_ms"], best[f"{kind}_ms"]
            if after < 0.97 * before:
                error = f", error {best['error']:.1e}" if "error" in best else ""
                lines.append(
                    f"tiles: {setting}, {dtype}, {kind}: {best['variant']}: {before:.3g} to {after:.3g} ms{error}"
                )
    return "\n".join(lines[:8])


def _steps(results: Results) -> str:
    models: dict[tuple[str, bool], dict[str, Row]] = {}
    for row in results.read("step"):
        if "ms" in row:
            models.setdefault((row["model"], row["compiled"]), {})[row["way"]] = row
    lines = []
    for (model, compiled), ways in models.items():
        took = ", ".join(f"{way} {row['ms']:.3g} ms, {row['peak_bytes'] / 1e6:.0f} MB" for way, row in ways.items())
        lines.append(f"{model}{' compiled' * compiled}: {took}")
    return "\n".join(lines[:8])


def records(results: Results) -> list[Row]:
    """The measurements as `kernels/measured.json` holds them: of each class of sizes the least favourable to Triton."""
    errors: dict[tuple[str, str, str], tuple[float, float]] = {}
    for row in results.read("error"):
        for kind in _measured.PASSES if "forms" in row else ():
            # Without a right result there is no time to speak of.
            own, other = (row["forms"][name][kind] for name in _OWN)
            key = (row["setting"], row["dtype"], kind)
            errors[key] = max(errors.get(key, (0.0, 0.0)), (own, other), key=lambda pair: pair[0] / max(pair[1], 1e-30))
    found: dict[tuple[str, str, str, int], Row] = {}
    for forms in _by_subject(results).values():
        if not set(_OWN) <= forms.keys():
            continue
        row, twin = (forms[name] for name in _OWN)
        key = (row["setting"], row["dtype"], row["pass"])
        if row["operator"] not in _measured.OPERATORS or key not in errors:
            continue
        record = {
            "operator": row["operator"],
            "dtype": row["dtype"],
            "pass": row["pass"],
            "size": _measured.size_of(row["operations"]),
            # As users call it: where launches take longer than the work, they count.
            "triton_ms": row["plain_ms"],
            "torch_ms": twin["plain_ms"],
            "triton_error": min(errors[key][0], 1e30),
            "torch_error": min(errors[key][1], 1e30),
        }
        place = (record["operator"], record["dtype"], record["pass"], record["size"])
        before = found.get(place)
        if before is None or _favour(record) < _favour(before):
            found[place] = record
    return [found[place] for place in sorted(found)]


def _favour(record: Row) -> tuple[bool, float]:
    right = record["triton_error"] <= 2 * record["torch_error"]
    return right, record["torch_ms"] / record["triton_ms"]


def write_measured(results: Results, path: Path, known: Path = _measured.PATH) -> Path | None:
    """Writes the known table with this card's records in place of older ones; None where nothing was measured.

    Args:
        results: of a run.
        path: of the new table.
        known: the table that the package brings.
    """
    cards, own = results.read("card"), records(results)
    if not own or not cards or "name" not in cards[0]:
        return None
    card = {"name": cards[0]["name"], "capability": cards[0]["capability"], "records": own}
    others: Iterable[Row] = json.loads(known.read_text())["cards"]
    write_json(
        path, {"cards": sorted([*(x for x in others if x["name"] != card["name"]), card], key=lambda x: x["name"])}
    )
    _measured.read(path)
    return path
