"""Frozen backbones compared by what a small classifier learns from their features."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ...heads.probing import EfficientProbing, FrozenBackbone, ProbeHead, accuracy, fit, save_head
from ..common.errors import UserError
from ..common.files import atomic_path, write_json
from ..common.machine import cpu_name
from ..common.models import check_model
from ..common.outputs import check_outputs
from ..common.progress import bar
from ..data.labelled_images import Data
from .features import features_of
from .models import build
from .settings import Settings


def probe(
    models: Sequence[str],
    data: Data,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    checkpoints: Sequence[str | os.PathLike[str]] | None = None,
    pretrained: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Probe each model and write what was found.

    Args:
        models: Names of timm models.
        data: The images.
        out: Folder for the heads and `result.json`.
        settings: How the heads are trained.
        checkpoints: A file of weights for each model.
        pretrained: Take timm's own weights.
        overwrite: Replace what an older probing has left in `out`.

    Returns:
        What is written to `result.json`.

    Raises:
        UserError: if a name, a checkpoint, an image or a setting does not fit, or if a file to be written is there.
    """
    settings = settings or Settings()
    for name in models:
        check_model(name)
    if len(set(models)) < len(models):
        raise UserError("no model may be named twice")
    if checkpoints is not None and len(checkpoints) != len(models):
        raise UserError(f"--checkpoint: {len(models)} models need as many files, not {len(checkpoints)}")
    heads = [
        _head_file(name, pooling, seed) for name in models for pooling in settings.poolings for seed in settings.seeds
    ]
    check_outputs([Path(out, name) for name in ["result.json", *heads]], checkpoints or (), overwrite=overwrite)
    built = [build(name, None if checkpoints is None else checkpoints[i], pretrained) for i, name in enumerate(models)]
    for name, model in zip(models, built, strict=True):
        _check_queries(name, model, settings)
    rows: list[dict[str, Any]] = []
    for i, (name, model) in enumerate(zip(models, built, strict=True)):
        weights = str(checkpoints[i]) if checkpoints is not None else "timm's" if pretrained else "random"
        rows += _probe_one(name, weights, model, data, Path(out), settings)
    packages = ("attnzoo", "torch", "timm")
    results = {
        "data": {
            "name": data.name,
            "classes": data.classes,
            **{split: len(part) for split, part in data.items.items()},
        },
        "settings": vars(settings),
        "rows": rows,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }
    write_json(Path(out) / "result.json", results)
    return results


def _head_file(model: str, pooling: str, seed: int) -> str:
    return f"{model}_{pooling}_seed_{seed}.safetensors"


def _check_queries(name: str, model: Any, settings: Settings) -> None:
    if "attentive" in settings.poolings and settings.queries is not None:
        try:
            EfficientProbing(FrozenBackbone(model).channels, settings.queries)
        except ValueError as error:
            raise UserError(f"--queries: {name}: {error}") from error


def _probe_one(name: str, weights: str, model: Any, data: Data, out: Path, settings: Settings) -> list[dict[str, Any]]:
    """A row for each pooling."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = FrozenBackbone(model).to(device)
    start = time.process_time()
    batches, shape = features_of(name, backbone, data, settings, device)
    seconds = time.process_time() - start
    rows = []
    for pooling in settings.poolings:
        values, heads = [], []
        start = time.process_time()
        for seed in settings.seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                head = ProbeHead(backbone.channels, len(data.classes), pooling, settings.queries).to(device)
                with bar(total=settings.epochs, title=f"{name}, {pooling}, seed {seed}", leave=False) as progress:

                    def step(loss: float, progress: Any = progress) -> None:
                        progress.set_postfix(loss=f"{loss:.3f}")
                        progress.update()

                    fit(head, batches("train", seed), settings.epochs, settings.lr, step)
            values.append(accuracy(head, batches("val", None)))
            heads.append(_head_file(name, pooling, seed))
            facts = {"model": name, "weights": weights, "size": shape["size"], "classes": data.classes}
            with atomic_path(out / heads[-1]) as temporary:
                save_head(head, temporary, **facts, top1=values[-1])
        rows.append(
            {
                "model": name,
                "weights": weights,
                "backbone_parameters": sum(p.numel() for p in model.parameters()),
                **shape,
                "pooling": pooling,
                "queries": head.config["num_queries"] if pooling == "attentive" else None,
                "head_parameters": sum(p.numel() for p in head.parameters()),
                "top1": values,
                "mean": statistics.mean(values),
                "spread": statistics.stdev(values) if len(values) > 1 else None,
                "heads": heads,
                "cpu_seconds_of_features": seconds,
                "cpu_seconds_of_training": time.process_time() - start,
            }
        )
    return rows
