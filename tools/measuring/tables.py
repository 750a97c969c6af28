"""Tables in Markdown."""

from __future__ import annotations


def markdown(heads: list[str], rows: list[list[str]], left: int) -> str:
    """A table whose first `left` columns are flush left, the others right."""
    lines = [heads, ["---"] * left + ["---:"] * (len(heads) - left), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
