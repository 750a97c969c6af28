"""The mm libraries' own tools take the configs as they are: nothing of attnzoo is imported but by the config."""

import json
import subprocess
import sys
from pathlib import Path

import mmdet
import mmseg
import pytest
from tools_helpers import ENVIRONMENT, make_data

from attnzoo.tools.config.loading import find_config

PLAIN = """
import sys
from mmengine.config import Config
assert not any(name.split(".")[0] == "attnzoo" for name in sys.modules)
for path in sys.argv[1:]:
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.type == "attnzoo.Backbone"
    print(cfg.model.type, cfg.default_scope)
"""


def python(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.long
def test_mmengine_alone_reads_configs_of_both_libraries(tmp_path):
    paths = [find_config(name) for name in ("van/retinanet_van-b1_1x_coco", "van/mask2former_van-b2_160k_ade20k")]
    printed = python("-c", PLAIN, *paths, cwd=tmp_path)
    assert "RetinaNet mmdet" in printed
    assert "EncoderDecoder mmseg" in printed


def as_coco(root: Path) -> None:
    """The squares as COCO has them: its folders, its names of classes."""
    make_data(root, count=2)
    content = json.loads((root / "train.json").read_text())
    for category, name in zip(content["categories"], ("person", "bicycle"), strict=True):
        category["name"] = name
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    (root / "images").rename(root / "train2017")
    (root / "val2017").symlink_to(root / "train2017")


def as_ade20k(root: Path) -> None:
    make_data(root, count=2)
    for kind, folder in (("images", "images"), ("annotations", "maps")):
        (root / folder).rename(root / f"{kind}_")
        (root / kind).mkdir()
        (root / f"{kind}_").rename(root / kind / "training")
        (root / kind / "validation").symlink_to(root / kind / "training")


# One step, and small images: nothing else is changed.
PIPELINE = "train_dataloader.dataset.pipeline"
STEPS = {
    "van/mask-rcnn_van-b0_1x_coco": [
        "train_cfg.max_epochs=1",
        "train_cfg.val_begin=2",
        f"{PIPELINE}.2.scale=(160,160)",
    ],
    "van/semfpn_van-b0_40k_ade20k": [
        "train_cfg.max_iters=1",
        "train_cfg.val_begin=2",
        "model.data_preprocessor.size=(128,128)",
        f"{PIPELINE}.2.scale=(128,128)",
        f"{PIPELINE}.3.crop_size=(128,128)",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), STEPS.items())
def test_their_train_script_takes_a_step(name, options, tmp_path):
    if name.endswith("_coco"):
        library = mmdet
        as_coco(tmp_path / "data" / "coco")
    else:
        library = mmseg
        as_ade20k(tmp_path / "data" / "ade" / "ADEChallengeData2016")
    script = Path(library.__path__[0], ".mim", "tools", "train.py")
    options = [*options, "default_hooks.logger.interval=1", "default_hooks.checkpoint.interval=1"]
    printed = python(script, find_config(name), "--work-dir", "work", "--cfg-options", *options, cwd=tmp_path)
    assert "loss: " in printed
    assert "nan" not in printed.split("loss: ")[1].split()[0]
    assert list((tmp_path / "work").glob("*_1.pth"))
