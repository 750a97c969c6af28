"""The comparison of the plug-in modules."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import claim, new_folders, write_json
from ..common.locks import LOCK, locked
from ..common.messages import nearest
from ..config.loading import find_config, load_config, require_mm
from ..data import digits
from .processes import has_settings, is_finished, read_result, run_all
from .results import summary
from .settings import CONFIG, NONE, STAGES, names


def compare(
    out: str | os.PathLike[str],
    modules: list[str] | None = None,
    seeds: list[int] | None = None,
    jobs: int = 1,
    options: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train and evaluate what is not there yet, and sum all up.

    Args:
        out: Where all goes.
        modules: Names of `attnzoo.backbones.modules`; all if None. The detector without attention always runs.
        seeds: Of training; 0, 1 and 2 if None.
        jobs: Runs at once.
        options: Dotted keys and values that replace those of the config, for all runs alike.
        overwrite: Remove runs of other settings that are in the way.

    Returns:
        What is written to `comparison.json`.

    Raises:
        UserError: If an argument does not fit, a library is missing, a run fails, or something else than a comparison
            or a run of other settings is in `out`, or another one at work there.
    """
    out, chosen, seeds = Path(out), [NONE, *(modules or names())], seeds or [0, 1, 2]
    for name in chosen[1:]:
        if name not in names():
            raise UserError(f"--modules: no module {name!r}{nearest(name, names())}; known are {', '.join(names())}")
    if jobs < 1 or min(seeds) < 0 or len(set(seeds)) < len(seeds) or len(set(chosen)) < len(chosen):
        raise UserError("--jobs must be positive, --seeds not negative, and no module or seed given twice")
    require_mm()
    if find_spec("sklearn") is None:
        raise UserError("the comparison needs scikit-learn: pip install 'attnzoo[mm]'")
    load_config(CONFIG, options)
    with new_folders(out), locked(out / LOCK, str(out)):
        return _compare(out, chosen, seeds, jobs, options or {}, overwrite)


def _compare(
    out: Path, chosen: list[str], seeds: list[int], jobs: int, options: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    claim(out, "attnzoo compare")
    text = find_config(CONFIG).read_text(encoding="utf-8")
    # As JSON gives it back, so that it can be compared with what a run has noted.
    settings = json.loads(json.dumps({"config": text, "options": options, "stages": STAGES}))
    runs = [(name, seed, out / "runs" / name / f"seed_{seed}") for seed in seeds for name in chosen]
    for _, _, folder in runs:
        if (folder / "settings.json").exists() and not overwrite and not has_settings(folder, settings):
            raise UserError(
                f"{folder}: holds a run of other settings: --overwrite removes it, --out names another folder"
            )
    data = digits.build(out / "data")
    missing = [one for one in runs if not is_finished(one[2], settings)]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished before", flush=True)
    run_all(missing, data.root, settings, jobs)
    results = summary(chosen, seeds, {(name, seed): read_result(folder) for name, seed, folder in runs}, settings)
    write_json(out / "comparison.json", results)
    return results
