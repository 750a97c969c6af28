"""The packaged configs in bird's-eye view, and reduced variants of them over a small data set of simulated drives."""

import logging
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, init_default_scope
from zoo import shallow_arguments

from attnzoo.tools.config.loading import list_configs, load_config
from attnzoo.tools.data.driving.dataset import make_driving_data
from attnzoo.tools.running.engine import build_model

NAMES = [name for name in list_configs() if name.endswith("_nuscenes")]

_WIDTH, _HEADS = 32, 4
# Channels of the first stage of mmdet's ResNets, of 64 at full size.
_BASE = 8


def make_drives(folder: Path, **options: Any) -> Path:
    """A scene to train and one to test, of four samples each, or what the options say."""
    settings: dict[str, Any] = dict(seed=3, scenes=1, held_out=1, samples=4, image_size=(192, 108), processes=1)
    make_driving_data(folder, **settings | options)
    return folder


def reduced_config(name: str, root: Path, **options: Any) -> Config:
    """A config whose model trains in a second on a CPU, without leaving a kind of layer out, over drives in `root`.

    Options are dotted keys.
    """
    cfg = load_config(name, {"data_root": f"{root}/"})
    model = cfg.model
    shared = dict(embed_dims=_WIDTH, num_heads=_HEADS, feedforward_channels=_WIDTH, dropout=0.0)
    model.neck.out_channels = _WIDTH
    model.bev_encoder.update(rows=6, columns=8, num_layers=2, **shared)
    model.detection_head.update(num_query=20, num_layers=2, **shared)
    if "depth_head" in model:
        model.depth_head.update(in_channels=_WIDTH, mid_channels=16)
    backbone = model.backbone
    if backbone.type == "mmdet.ResNet":
        # Norms that begin at zero leave no gradient to see.
        backbone.update(depth=50, base_channels=_BASE, zero_init_residual=False)
        model.neck.in_channels = [channels * _BASE // 64 for channels in model.neck.in_channels]
    elif backbone.model_name == "resnet50":
        backbone.update(layers=(1, 1, 1, 1), zero_init_last=False)
    else:
        backbone.update(shallow_arguments(backbone.model_name), drop_path_rate=0.0)
    cfg.merge_from_dict(options)
    return cfg


def small_model(cfg: Config) -> BaseModel:
    """Build and initialise the model of a reduced config."""
    model = build_model(cfg)
    logging.disable(logging.INFO)  # mmengine logs three lines a parameter
    try:
        model.init_weights()
    finally:
        logging.disable(logging.NOTSET)
    return model


def batch(cfg: Config, split: str, *indices: int) -> dict[str, list]:
    """Samples of the data set of a config, through its pipeline."""
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
    samples = [dataset[index] for index in indices]
    return {key: [sample[key] for sample in samples] for key in ("inputs", "data_samples")}


def write_recipe(path: Path, name: str, root: Path, epochs: int, **options: Any) -> Path:
    """Write a reduced config as a file, without workers, for `epochs` epochs; options are dotted keys."""
    cfg = reduced_config(name, root)
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False)
    cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    cfg.default_hooks = dict(
        logger=dict(type="LoggerHook", interval=1),
        checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1),
    )
    cfg.randomness = dict(seed=0)
    cfg.merge_from_dict(options)
    cfg.dump(path)
    return path
