"""Show what is known of a model: size, feature maps, licence, paper, published accuracy."""

from __future__ import annotations

import argparse
from typing import Any

from ..backbones.contract.facts import feature_levels
from ..backbones.contract.provenance import comparison
from .common.models import check_model

EPILOG = """\
examples:
  attnzoo info van_b0
  attnzoo info biformer_tiny
  attnzoo info resnet18        any model of timm
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="a model of the zoo (attnzoo list) or of timm")


def describe(name: str) -> dict[str, str]:
    """What is known of a model, by heading.

    Raises:
        UserError: if there is no such model, naming the nearest.
    """
    import timm
    import torch

    check_model(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    known = timm.models.get_pretrained_cfg(name)
    cfg: dict[str, Any] = known.to_dict() if known else {}
    stages = feature_levels(model)
    facts = {
        "model": name,
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M",
    }
    if stages:
        facts["channels"] = ", ".join(str(stage["num_chs"]) for stage in stages)
        facts["strides"] = ", ".join(str(stage["reduction"]) for stage in stages)
    if cfg:
        facts["input"] = f"{' x '.join(map(str, cfg['input_size']))}, mean {cfg['mean']}, std {cfg['std']}"
    paper = ", ".join(filter(None, (cfg.get("paper_name"), *_as_tuple(cfg.get("paper_ids")))))
    facts["weights"] = cfg.get("hf_hub_id") or cfg.get("url") or "no public link"
    for heading, value in (
        ("tag", cfg.get("tag")),
        ("licence", cfg.get("license")),
        ("paper", paper),
        ("origin", cfg.get("origin_url")),
        ("notes", "; ".join(_as_tuple(cfg.get("notes")))),
    ):
        if value:
            facts[heading] = value
    facts["compared with"] = str(comparison(name) or "nothing here: a model of timm's own")
    return facts


def _as_tuple(value: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    facts = describe(args.model)
    width = max(map(len, facts))
    print("\n".join(f"{heading:<{width}}  {value}" for heading, value in facts.items()))
    return 0
