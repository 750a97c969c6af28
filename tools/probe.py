"""Compare frozen backbones by what a small classifier learns from their features.

The backbone is in evaluation mode and never trained. Its features of all images are computed once, without
augmentation, and held in memory where they fit. From them a head learns to classify: attentive pooling with learned
queries, and the mean over all places (a linear probe) beside it. What is told is the accuracy on held-out images after
the last epoch, as the mean over the seeds of the head's training.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbones.contract.facts import convert_checkpoint
from .common.errors import UserError
from .common.files import atomic_path, check_outputs, write_json
from .common.progress import bar
from .config.loading import one_line
from .data.images import MAX_SIDE
from .data.labelled_images import Data, digits, image_folder
from .info import check_model
from .measuring.machine import cpu_name

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ..heads.probing import Batches, FrozenBackbone

EPILOG = """\
examples:
  attnzoo probe van_b0 biformer_tiny pvt_v2_b0 --digits
  attnzoo probe van_b0 litv2_small --checkpoint van_b0.pth litv2_s.pth --data flowers
  attnzoo probe resnet50 --pretrained --data flowers --pooling attentive --seeds 0

--data is a folder of images by class, CLASS/*.jpg, of which a share is held out, or one with such folders train/ and
val/ (or test/). --digits are the 1797 scans of scikit-learn, every fifth of a class held out.

writes into the folder of --out:
  MODEL_POOLING_seed_N.safetensors   each head; attnzoo.heads.probing.load_head reads it
  result.json                        the table, settings, versions and hardware
"""

# What PyTorch's generators take.
MAX_SEED = 2**63 - 1
# Of scikit-learn's digits, which have 8 × 8 pixels; models as they are published expect about 224.
_DIGITS_SIZE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="models of the zoo (attnzoo list) or of timm")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FOLDER", help="images in folders by class")
    source.add_argument("--digits", action="store_true", help="scikit-learn's handwritten digits")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", nargs="+", metavar="FILE", help="weights of each model (random)")
    weights.add_argument("--pretrained", action="store_true", help="timm's own weights, which it may download")
    parser.add_argument(
        "--size", type=int, metavar="PX", help=f"of the images (the model's; {_DIGITS_SIZE} for digits)"
    )
    parser.add_argument(
        "--pooling", nargs="+", choices=("attentive", "mean"), default=["attentive", "mean"], help="of the heads (both)"
    )
    parser.add_argument("--queries", type=int, metavar="N", help="of the attention (32, or what divides the channels)")
    parser.add_argument("--epochs", type=int, default=50, metavar="N", help="of the heads' training (50)")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="X", help="learning rate at its start (0.001)")
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="images at a time (128)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of the heads (0 1 2)")
    parser.add_argument("--val-share", type=float, default=0.2, metavar="X", help="held out of --data (0.2)")
    parser.add_argument("--memory", type=float, default=4.0, metavar="GIB", help="for features; else recomputed (4)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (0)")
    parser.add_argument("--out", metavar="DIR", default="work_dirs/probe", help="where all goes (work_dirs/probe)")
    parser.add_argument("--overwrite", action="store_true", help="replace what an older probing has left in --out")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    data = digits() if args.digits else image_folder(args.data, args.val_share)
    settings = Settings(
        size=args.size or (_DIGITS_SIZE if args.digits else None),
        poolings=tuple(dict.fromkeys(args.pooling)),
        queries=args.queries,
        epochs=args.epochs,
        lr=args.lr,
        batch=args.batch,
        seeds=tuple(args.seeds),
        memory=args.memory,
        workers=args.workers,
    )
    results = probe(args.models, data, args.out, settings, args.checkpoint, args.pretrained, args.overwrite)
    print(table(results))
    return 0


@dataclass(frozen=True)
class Settings:
    """How heads are trained; the command's help says what each is."""

    size: int | None = None
    poolings: tuple[str, ...] = ("attentive", "mean")
    queries: int | None = None
    epochs: int = 50
    lr: float = 1e-3
    batch: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    memory: float = 4.0
    workers: int = 0

    def __post_init__(self) -> None:
        positive = {"size": self.size, "queries": self.queries, "epochs": self.epochs, "lr": self.lr}
        for name, value in {**positive, "memory": self.memory}.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} must be positive{' and finite' if value == math.inf else ''}, got {value}")
        if self.size is not None and self.size > MAX_SIDE:
            raise UserError(f"--size must be at most {MAX_SIDE}, got {self.size}")
        if self.batch < 2:
            raise UserError(f"--batch must be 2 or more, since the heads norm over it, got {self.batch}")
        if max(self.seeds) > MAX_SEED:
            raise UserError(f"--seeds must be at most {MAX_SEED}, got {max(self.seeds)}")
        if self.workers < 0 or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise UserError("--workers and --seeds must not be negative, and no seed given twice")


class _Images:
    """A split as the data loader wants it: pairs of a transformed image (3, H, W) and a class."""

    def __init__(self, data: Data, split: str, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.items = data.items[split]
        self.read = data.read
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        item, label = self.items[index]
        return self.transform(self.read(item)), label


class _Recomputed:
    """Batches of features that are computed anew at every walk."""

    def __init__(self, backbone: FrozenBackbone, loader: Any, device: torch.device) -> None:
        self.backbone = backbone
        self.loader = loader
        self.device = device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.loader:
            yield self.backbone(images.to(self.device)), labels


def build(name: str, checkpoint: str | os.PathLike[str] | None = None, pretrained: bool = False) -> Any:
    """A timm model that takes any image size, as far as it can, with its weights or with random ones of seed 0.

    Raises:
        UserError: if the checkpoint does not fit, or timm's weights cannot be had.
    """
    import timm
    import torch

    from .measuring.models import FREE_SIZE

    model: Any = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for free in FREE_SIZE:
            try:
                model = timm.create_model(name, pretrained=pretrained, **free)
                break
            except TypeError:
                if not free:
                    raise
            except Exception as error:  # of a download, of any kind
                if not pretrained:
                    raise
                raise UserError(
                    f"{name}: no weights of timm's can be had ({one_line(error, 200)}); --checkpoint takes a file"
                ) from error
    if checkpoint is not None:
        from .running.checkpoint import load_into

        load_into(model, checkpoint, partial(_converted, model))
    return model


def _converted(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint in the model's layout; the classifier, which probing does not use, keeps its own values."""
    try:
        state = convert_checkpoint(state, model)
    except ValueError:
        raise
    except Exception as error:  # timm's take the shapes that they expect for granted
        raise ValueError(f"not weights of {type(model).__name__}: {one_line(error, 200)}") from error
    names = model.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    return {**{key: value for key, value in state.items() if not key.startswith(prefixes)}, **own}


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
    from ..heads.probing import EfficientProbing, FrozenBackbone

    if "attentive" in settings.poolings and settings.queries is not None:
        try:
            EfficientProbing(FrozenBackbone(model).channels, settings.queries)
        except ValueError as error:
            raise UserError(f"--queries: {name}: {error}") from error


def _probe_one(name: str, weights: str, model: Any, data: Data, out: Path, settings: Settings) -> list[dict[str, Any]]:
    """A row for each pooling."""
    import torch

    from ..heads.probing import FrozenBackbone, ProbeHead, accuracy, fit, save_head

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = FrozenBackbone(model).to(device)
    start = time.process_time()
    batches, shape = _features(name, backbone, data, settings, device)
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


def _features(
    name: str, backbone: FrozenBackbone, data: Data, settings: Settings, device: torch.device
) -> tuple[Callable[[str, int | None], Batches], dict[str, Any]]:
    """What gives the batches of a split (shuffled by a seed, or in order), and the shape of the features."""
    import torch
    from timm.data import create_transform, resolve_model_data_config
    from torch.utils.data import DataLoader

    from ..heads.probing import FeatureBatches

    cfg = resolve_model_data_config(backbone.model)
    size = settings.size or cfg["input_size"][-1]
    cfg["input_size"] = (3, size, size)
    if not data.crop:
        cfg["crop_pct"] = 1.0
    transform = create_transform(**cfg, is_training=False)
    splits = {split: _Images(data, split, transform) for split in data.items}

    def loaded(split: str, seed: int | None) -> Batches:
        images: Any = splits[split]
        # Of its own, also where nothing is shuffled: the loader draws from it in any case.
        generator = torch.Generator().manual_seed(seed or 0)
        loader = DataLoader(
            images,
            min(settings.batch, len(images)),
            shuffle=seed is not None,
            drop_last=seed is not None,
            generator=generator,
            num_workers=settings.workers,
        )
        return _Recomputed(backbone, loader, device)

    first = splits["train"][0][0][None]
    try:
        one = backbone(first.to(device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{name} does not take images of {size} x {size}: {one_line(error, 200)}; --size sets another"
        ) from error
    shape = {"size": size, "places": one.shape[1], "channels": one.shape[2]}
    count = sum(map(len, splits.values()))
    if count * one.numel() * one.element_size() > settings.memory * 2**30:
        print(f"{name}: the features are larger than --memory and are computed anew at every epoch", file=sys.stderr)
        return loaded, shape

    held: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with bar(total=count, title=f"features of {name}", leave=False) as progress:
        for split, images in splits.items():
            features = torch.empty(len(images), *one.shape[1:], dtype=one.dtype)
            labels = torch.tensor([label for _, label in images.items])
            done = 0
            for part, _ in loaded(split, None):
                features[done : done + len(part)] = part.cpu()
                done += len(part)
                progress.update(len(part))
            held[split] = features, labels
    return lambda split, seed: FeatureBatches(*held[split], settings.batch, seed), shape


def table(results: dict[str, Any]) -> str:
    """The results as text: mean and standard deviation over the seeds."""
    data, rows = results["data"], results["rows"]
    seeds = ", ".join(map(str, results["settings"]["seeds"]))
    lines = [
        f"top-1 accuracy on {data['val']} held-out images of {data['name']} ({len(data['classes'])} classes, "
        f"{data['train']} to train), mean over the seeds {seeds}",
        "",
    ]
    width = max(len("model"), *(len(row["model"]) for row in rows)) + 2
    lines += [f"{'model':<{width}}{'pooling':<11}{'top-1':<16}{'head':>10}{'features':>12}   weights"]
    for row in rows:
        mean = f"{row['mean']:.4f}" + ("" if row["spread"] is None else f" ± {row['spread']:.4f}")
        features = f"{row['places']} x {row['channels']}"
        lines.append(
            f"{row['model']:<{width}}{row['pooling']:<11}{mean:<16}{row['head_parameters']:>10,}{features:>12}   "
            f"{row['weights']}"
        )
    return "\n".join([*lines, "", "head: its parameters; features: places x channels of the last level"])
