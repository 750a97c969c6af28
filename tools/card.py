"""Print or write the model cards: one a family, made from what the code itself says."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..backbones.contract.facts import families
from ..backbones.contract.provenance import abbreviated, comparison
from .common.errors import UserError
from .common.files import atomic_path
from .common.messages import nearest
from .measuring import models

EPILOG = """\
examples:
  attnzoo card van             print a family's card
  attnzoo card --write         bring every file of model_cards/ up to date
  attnzoo card --table         print README's table of families
"""

STAMP = "<!-- Written by `attnzoo card --write`; a test checks that it is current. -->"
# As `default_cfgs` name them, in words.
_LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "other": "none stated"}
CARD_ROOT = Path(__file__).resolve().parents[1] / "model_cards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("family", nargs="?", help="a family of the zoo, e.g. van (all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help=f"write to {CARD_ROOT} instead of printing")
    what.add_argument("--table", action="store_true", help="print the table of all families instead of cards")


def card(family: str) -> str:
    """The card of a family in Markdown.

    Parameters and multiply-adds are counted on the model at its default input size; licence, paper, origin and the
    notes, published accuracy among them, are the `default_cfgs` of the family's file.

    Raises:
        UserError: if there is no such family, naming the nearest.
    """
    import timm
    import torch

    known = families()
    if family not in known:
        raise UserError(f"no family {family!r}{nearest(family, known)} (there are {', '.join(known)})")
    module = importlib.import_module(f"..backbones.{family}", __package__)
    lines = [
        f"# {family}",
        "",
        STAMP,
        "",
        inspect.getdoc(module) or "",
        "",
        *_head(
            "model | parameters (M) | multiply-adds (G) | channels | last map | compared with | licence | paper | notes"
        ),
    ]
    for name in known[family]:
        with torch.device("meta"):
            model: Any = timm.create_model(name)
        cfg = model.pretrained_cfg
        _, height, width = cfg["input_size"]
        cells = [
            f"`{name}`",
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
            f"{models.multiply_adds(name, False, height, width) / 1e9:.2f} at {width}",
            ", ".join(str(stage["num_chs"]) for stage in model.feature_info),
            f"`{model.feature_info[-1]['size']}`",
            str(comparison(name)),
            cfg["license"],
            _paper(cfg["paper_ids"]),
            " ".join(cfg.get("notes", ())),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "The last map's height and width are given for an image of n pixels; `feature_info` has all levels'."]
    lines += ["", "Accuracies are the authors' claims, not measured here. No weights are shipped or linked.", ""]
    return "\n".join(lines)


def _paper(number: str) -> str:
    return f"[{number}](https://arxiv.org/abs/{number.removeprefix('arXiv:')})"


def table() -> str:
    """README's table of families in Markdown: models, papers, licences, and what was compared with published code."""
    from timm.models import get_pretrained_cfg

    lines = _head("family | models | papers | licence of the original | compared with")
    for family, names in families().items():
        module = importlib.import_module(f"..backbones.{family}", __package__)
        cfgs: list[Any] = [get_pretrained_cfg(name) for name in names]
        licences = [
            "no code" if cfg.origin_url.startswith("https://arxiv.org") else _LICENCES.get(cfg.license, cfg.license)
            for cfg in cfgs
        ]
        cells = [
            f"[{family}](model_cards/{family}.md)<br>{(inspect.getdoc(module) or '').splitlines()[0]}",
            _patterns(names),
            "<br>".join(dict.fromkeys(_paper(cfg.paper_ids) for cfg in cfgs)),
            ", ".join(dict.fromkeys(licences)),
            "<br>".join(_compared(names)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _head(titles: str) -> list[str]:
    """The first two lines of a table."""
    return [f"| {titles} |", re.sub(r"[^|]+", " --- ", f"|{titles}|")]


def _patterns(names: Iterable[str]) -> str:
    return " ".join(f"`{pattern}`" for pattern in abbreviated(names))


def _compared(names: list[str]) -> Iterator[str]:
    """What models were compared with, the same of several in one sentence."""
    said: dict[str, list[str]] = {}
    for name in names:
        known: Any = comparison(name)
        if known.golden:
            text = f"published code ({known.golden_note})" if known.golden_note else "published code"
        elif known.kin:
            text = "the same layers in other sizes"
            text += f", but for {known.beyond}" if known.beyond else ""
        else:
            text = f"no golden file ({known.no_golden})"
        said.setdefault(text, []).append(name)
    for text, those in said.items():
        yield f"{text}: {_patterns(those)}"


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.table:
        if args.family:
            raise UserError("--table is a table of all families: attnzoo card --table")
        print(table(), end="")
        return 0
    for family in [args.family] if args.family else families():
        text = card(family)
        if args.write:
            path = CARD_ROOT / f"{family}.md"
            if path.exists() and STAMP not in path.read_text(encoding="utf-8").splitlines():
                raise UserError(f"{path}: was not written by this command (no line {STAMP!r}): move it away")
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(path)
        else:
            print(text)
    return 0
