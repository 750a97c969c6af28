"""Configs that follow a published recipe, field by field against what its repository says.

`published.json` holds one row a config, read from the published files: `source` is repository and file. `images` are
those of one update, the published images a GPU times eight (SegNeXt's paper tells 16 in all).
"""

import json
from itertools import cycle, islice
from pathlib import Path

import pytest
import torch
from config_models import config
from mmengine.optim import build_optim_wrapper

from attnzoo.tools.running.engine import build_model

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))


def schedule(cfg) -> dict:
    """The fields of a row that the schedule answers."""
    ours: dict = {}
    if cfg.train_cfg.type == "EpochBasedTrainLoop":
        ours["epochs"] = cfg.train_cfg.max_epochs
    else:
        ours["iterations"] = cfg.train_cfg.max_iters
    last = cfg.param_scheduler[-1]
    assert last.end == cfg.train_cfg.get("max_epochs", cfg.train_cfg.get("max_iters"))
    if len(cfg.param_scheduler) > 1:
        first, _ = cfg.param_scheduler
        assert (first.type, first.begin, first.by_epoch) == ("LinearLR", 0, False)
        ours |= {"warmup": first.end, "warmup_factor": first.start_factor}
    if last.type == "MultiStepLR":
        assert last.gamma == 0.1
        ours["milestones"] = last.milestones
    elif last.type == "CosineAnnealingLR":
        ours["cosine_to"] = last.eta_min
    else:
        assert last.type == "PolyLR"
        ours |= {"power": last.power, "min_lr": last.eta_min}
    return ours


def fields(cfg, row: dict) -> dict:
    """What our config says of each field of a row."""
    model, backbone, wrapper = cfg.model, cfg.model.backbone, cfg.optim_wrapper
    keys = (wrapper.get("paramwise_cfg") or {}).get("custom_keys", {})
    before = model.neck if "neck" in model else model.decode_head
    ours = schedule(cfg) | {
        "optimizer": wrapper.optimizer.type,
        "lr": wrapper.optimizer.lr,
        "weight_decay": wrapper.optimizer.weight_decay,
        "drop_path_rate": backbone.drop_path_rate,
        "images": cfg.auto_scale_lr.base_batch_size,
        "in_channels": list(before.in_channels),
        "undecayed_norms": (wrapper.get("paramwise_cfg") or {}).get("norm_decay_mult") == 0.0,
        "head_lr_mult": keys.get("head", {}).get("lr_mult"),
        "n_win": backbone.get("n_win"),
        "local_ws": list(backbone.get("local_ws", ())),
        "agent_grids": list(backbone.get("agent_grids", ())),
    }
    if model.type == "RetinaNet":
        # Ours does not ask the backbone for the level that the published neck leaves out.
        assert list(backbone.out_indices) == [1, 2, 3]
        ours["in_channels"].insert(0, row["in_channels"][0])
    if "dilations" in row:
        stages = zip(backbone.dilations, row["dilations"], strict=True)
        ours["dilations"] = [list(islice(cycle(steps), len(theirs))) for steps, theirs in stages]
    if "ham_channels" in row:
        head = model.decode_head
        ours |= {"ham_channels": head.ham_channels, "channels": head.channels, "bases": head.ham_kwargs.get("MD_R", 64)}
    return ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_is_as_published(name):
    row = {key: value for key, value in PUBLISHED[name].items() if key != "source"}
    cfg = config(name)
    ours = fields(cfg, row)
    assert {key: ours.get(key) for key in row} == row
    # Where norms are exempt from weight decay, so are biases and the tables of positions.
    if row["undecayed_norms"]:
        assert cfg.optim_wrapper.paramwise_cfg.bias_decay_mult == 0.0


def groups(name: str) -> dict[str, dict]:
    """The options of the optimizer for each parameter of the full model."""
    cfg = config(name)
    with torch.device("meta"):
        model = build_model(cfg)
    names = {parameter: key for key, parameter in model.named_parameters()}
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    return {names[p]: group for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("nat/mask-rcnn_nat-mini_3x-ms_coco", ".rpb"),
        ("agent/mask-rcnn_agent-swin-tiny_1x_coco", "_bias"),
        ("biformer/upernet_biformer-small_160k_ade20k", ".norm1.weight"),
        ("mscan/light-ham_mscan-tiny_160k_ade20k", ".bias"),
    ],
)
def test_what_is_not_decayed(name, tables):
    options = {key: group for key, group in groups(name).items() if key.startswith("backbone.")}
    free = {key for key, group in options.items() if group["weight_decay"] == 0.0}
    assert {key for key in options if key.endswith((tables, ".bias", "norm1.weight"))} <= free
    assert all(key not in free for key in options if key.endswith("qkv.weight") or key.endswith("fc1.weight"))
    assert any(key.endswith(tables) for key in free)


def test_segnext_trains_its_head_faster():
    options = groups("mscan/light-ham_mscan-tiny_160k_ade20k")
    rates = {group["lr"] for key, group in options.items() if key.startswith("decode_head.")}
    assert list(rates) == [pytest.approx(6e-4)]
    options = groups("van/light-ham_van-b0_160k_ade20k")
    assert {group["lr"] for key, group in options.items() if key.startswith("decode_head.")} == {6e-5}


@pytest.mark.parametrize(
    ("name", "lr", "rate", "layers"),
    [
        # mmdetection: configs/convnext; its constructor has `num_layers` groups and one more for the stem.
        ("timm/mask-rcnn_convnext-tiny_3x-ms_coco", 1e-4, 0.95, 6),
        ("timm/cascade-mask-rcnn_convnext-tiny_3x-ms_coco", 2e-4, 0.7, 6),
        ("timm/cascade-mask-rcnn_convnext-small_3x-ms_coco", 2e-4, 0.7, 12),
        # mmsegmentation: configs/convnext.
        ("timm/upernet_convnext-tiny_160k_ade20k", 1e-4, 0.9, 6),
    ],
)
def test_layer_decay_gives_the_stem_the_published_rate(name, lr, rate, layers):
    options = groups(name)
    stem = {group["lr"] for key, group in options.items() if key.startswith("backbone.model.stem.")}
    assert list(stem) == [pytest.approx(lr * rate ** (layers + 1))]
    assert {group["lr"] for key, group in options.items() if not key.startswith("backbone.")} == {lr}
    assert {group["weight_decay"] for group in options.values()} == {0.0, 0.05}


def test_plain_backbones_decay_as_vitdet():
    options = groups("agent/mask-rcnn_agent-deit-small_3x-ms_coco")
    assert options["backbone.model.blocks.11.mlp.fc1.weight"]["lr"] == pytest.approx(1e-4 * 0.7)
    assert options["backbone.model.blocks.0.mlp.fc1.weight"]["lr"] == pytest.approx(1e-4 * 0.7**12)
