"""The packaged configs of detectors and segmentors on COCO and ADE20K, and reduced variants of their models."""

import copy
import functools
import logging
import re
from typing import Any

from mm_steps import CLASSES
from mmengine.config import Config, utils
from mmengine.model import BaseModel, revert_sync_batchnorm
from zoo import shallow_arguments

from attnzoo.tools.config.loading import list_configs, load_config
from attnzoo.tools.running.engine import build_model

# mmengine reads all metafiles of mmdetection anew for each `mmdet::`.
utils.load = functools.cache(utils.load)

NAMES = [name for name in list_configs() if name.endswith(("_coco", "_ade20k"))]

# One of every layer, few proposals, queries and points, three classes: limits wherever the key stands in a model.
_LIMITS = {
    "channels": 64,
    "conv_out_channels": 32,
    "fc_out_channels": 32,
    "ham_channels": 64,
    "max_per_image": 8,
    "max_per_img": 20,
    "nms_pre": 100,
    "num": 32,
    "num_blocks": 1,
    "num_classes": CLASSES,
    "num_csp_blocks": 1,
    "num_dn_queries": 4,
    "num_layers": 1,
    "num_points": 256,
    "num_queries": 8,
    "num_shared_convs": 1,
    "num_things_classes": CLASSES,
    "score_thr": 0.0,  # scores of untrained heads are below the usual thresholds
    "stacked_convs": 1,
}
# timm's own, which tests/zoo.py does not know. Layer scales near zero and zeroed norms leave no gradient to see.
_TIMM = {
    "convnext": dict(depths=(1, 1, 1, 1), ls_init_value=1.0),
    "davit": dict(depths=(1, 1, 1, 1)),
    "halonet": dict(zero_init_last=False),
    "lambda": dict(zero_init_last=False),
    "mambaout": dict(depths=(1, 1, 1, 1)),
    "maxvit": dict(depths=(1, 1, 1, 1)),
    "resnest": dict(layers=(1, 1, 1, 1), zero_init_last=False),
    "resnet": dict(layers=(1, 1, 1, 1), zero_init_last=False),
}


@functools.cache
def _loaded(name: str) -> Config:
    return load_config(name)


def config(name: str) -> Config:
    """A packaged config, read once a process; the copy is the caller's."""
    return copy.deepcopy(_loaded(name))


def head(name: str) -> str:
    """The first part of a config's name."""
    return name.split("/")[1].split("_")[0]


def architecture(name: str) -> str:
    """The backbone in a config's name without its size: `agent-swin` of `…/upernet_agent-swin-tiny_160k_ade20k`."""
    return re.sub(r"-(tiny|mini|small|medium|base|large|b\d)(-640px)?$", "", name.split("/")[1].split("_")[1])


def _limit(node: Any) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _LIMITS and isinstance(value, int | float):
                node[key] = min(value, _LIMITS[key])
            elif key == "class_weight" and isinstance(value, list):
                node[key] = [1.0] * CLASSES + [value[-1]]
            else:
                _limit(value)
    elif isinstance(node, list):
        for value in node:
            _limit(value)


def reduce(cfg: Config) -> None:
    """Make the model of a config small enough to be trained in seconds on a CPU, without leaving a layer out."""
    _limit(cfg.model)
    backbone, preprocessor = cfg.model.backbone, cfg.model.data_preprocessor
    timm_model = next((name for name in _TIMM if backbone.model_name.startswith(name)), None)
    backbone.update(_TIMM[timm_model] if timm_model else shallow_arguments(backbone.model_name))
    if backbone.model_name.startswith("dinat"):
        del backbone["dilations"]
        backbone.update(shallow_arguments(backbone.model_name))
    if "attention" in backbone:
        backbone.attention.identity = False  # begins as one, without gradients behind its last weights
    if "_deit_" in backbone.model_name:
        backbone.out_indices = (1,)
    backbone.drop_path_rate = 0.0  # a path that is dropped for the whole batch has no gradient
    if "size" in preprocessor:
        side = max(128, preprocessor.get("test_cfg", {}).get("size_divisor", 1))
        preprocessor.size = (side, side)
    if preprocessor.get("batch_augments"):
        preprocessor.batch_augments = None


def small_model(cfg: Config) -> BaseModel:
    """Build and initialise the reduced model of a config."""
    reduce(cfg)
    model = revert_sync_batchnorm(build_model(cfg))
    logging.disable(logging.INFO)  # mmengine logs three lines a parameter
    try:
        model.init_weights()
    finally:
        logging.disable(logging.NOTSET)
    return model
