"""Print or write the model cards: one a family, made from what the code itself says."""

from __future__ import annotations

import argparse
import importlib
import inspect
from pathlib import Path
from typing import Any

from . import bench
from .common.errors import UserError
from .common.files import atomic_path
from .common.messages import nearest
from .list_models import families

EPILOG = """\
examples:
  attnzoo card van             print a family's card
  attnzoo card --write         bring every file of model_cards/ up to date
"""

STAMP = "<!-- Written by `attnzoo card --write`; a test checks that it is current. -->"
CARD_ROOT = Path(__file__).resolve().parents[1] / "model_cards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("family", nargs="?", help="a family of the zoo, e.g. van (all)")
    parser.add_argument("--write", action="store_true", help=f"write to {CARD_ROOT} instead of printing")


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
        "| model | parameters (M) | multiply-adds (G) | channels | last map | licence | paper | notes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in known[family]:
        with torch.device("meta"):
            model: Any = timm.create_model(name)
        cfg = model.pretrained_cfg
        _, height, width = cfg["input_size"]
        cells = [
            f"`{name}`",
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
            f"{bench.multiply_adds(name, False, height, width) / 1e9:.2f} at {width}",
            ", ".join(str(stage["num_chs"]) for stage in model.feature_info),
            f"`{model.feature_info[-1]['size']}`",
            cfg["license"],
            f"[{cfg['paper_ids']}](https://arxiv.org/abs/{cfg['paper_ids'].removeprefix('arXiv:')})",
            " ".join(cfg.get("notes", ())),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "The last map's height and width are given for an image of n pixels; `feature_info` has all levels'."]
    lines += ["", "Accuracies are the authors' claims, not measured here. No weights are shipped or linked.", ""]
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
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
