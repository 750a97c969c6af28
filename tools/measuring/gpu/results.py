"""Results of a run on a GPU, a JSON line each, written at once: what was measured outlives what fails later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.messages import one_line

FILE = "results.jsonl"


@dataclass(frozen=True)
class Results:
    """The file of a run, to which the processes of all its phases append.

    Attributes:
        folder: of the run's files.
    """

    folder: Path

    def add(self, kind: str, **fields: Any) -> None:
        """Appends a result, whole and at once."""
        line = json.dumps({"kind": kind, **fields}) + "\n"
        with (self.folder / FILE).open("a", encoding="utf-8") as file:
            file.write(line)

    def failed(self, kind: str, error: BaseException, **fields: Any) -> None:
        """Appends what went wrong in the place of a result."""
        self.add(kind, **fields, failed=one_line(error)[:400])

    def read(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Of a kind, or all; a last line that a process could not finish is left out."""
        path = self.folder / FILE
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if kind in (None, row["kind"]):
                found.append(row)
        return found
