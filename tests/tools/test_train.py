"""Train and test by the command line, on a data set of eight images."""

import json

import pytest
import torch
from tools_helpers import DETECTOR, SEGMENTOR, write_config

from attnzoo.tools import cli
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.arguments import set_work_dir
from attnzoo.tools.running.checkpoint import load_checkpoint
from attnzoo.tools.running.evaluation import evaluate
from attnzoo.tools.running.training import _add_hooks
from attnzoo.tools.running.work_dir import last_checkpoint


@pytest.mark.parametrize("name", ["detector", "segmentor"])
def test_what_training_leaves(trained, name):
    _, checkpoint = trained[name]
    folder = checkpoint.parent
    assert last_checkpoint(folder) == checkpoint
    assert [path.name for path in folder.glob("*.pth")] == [checkpoint.name], "max_keep_ckpts=1"
    assert not list(folder.rglob("*.tmp*"))
    log = next(folder.glob("*/*.log")).read_text()
    assert "Epoch(train) [8][4/4]" in log
    assert load_checkpoint(checkpoint)["meta"]["epoch"] == 8


def test_the_kept_config_can_be_trained_again_as_it_is(trained):
    config, checkpoint = trained["detector"]
    kept = load_config(checkpoint.parent / config.name)
    assert kept.default_hooks.checkpoint.type == "AtomicCheckpointHook"
    assert kept.custom_imports.imports == ["attnzoo.heads", "attnzoo.tools.running.engine"]


@pytest.mark.parametrize(
    ("name", "metric", "floor"), [("detector", "coco/bbox_mAP_50", 0.5), ("segmentor", "mIoU", 50)]
)
def test_test_prints_and_writes_what_evaluate_returns(trained, tmp_path, capsys, name, metric, floor):
    config, checkpoint = map(str, trained[name])
    out = tmp_path / "metrics.json"
    assert cli.main(["test", config, checkpoint, "--work-dir", str(tmp_path / "w"), "--out", str(out)]) == 0
    metrics = json.loads(out.read_text())
    assert metrics[metric] >= floor
    assert f"{metric:<{max(map(len, metrics))}}  {metrics[metric]:10.4f}" in capsys.readouterr().out
    cfg = load_config(config)
    set_work_dir(cfg, str(tmp_path / "again"))
    assert evaluate(cfg, checkpoint) == metrics


def test_options_reach_the_run_and_the_best_checkpoint_is_kept(data, tmp_path):
    config = write_config(tmp_path / "options.py", SEGMENTOR, data, epochs=3)
    options = [
        "train_cfg.val_interval=1",
        "optim_wrapper.optimizer.lr=0.003",
        "default_hooks.checkpoint.save_best=mIoU",
    ]
    arguments = ["train", str(config), "--work-dir", str(tmp_path / "w"), "--seed", "7", "--cfg-options", *options]
    assert cli.main(arguments) == 0
    content = load_checkpoint(tmp_path / "w" / "epoch_3.pth")
    assert content["meta"]["seed"] == 7
    assert content["optimizer"]["param_groups"][0]["initial_lr"] == 0.003
    best = content["message_hub"]["runtime_info"]["best_ckpt"]
    assert {str(path) for path in (tmp_path / "w").glob("*.pth")} == {best, str(tmp_path / "w" / "epoch_3.pth")}


@pytest.mark.parametrize(
    ("kind", "safe"),
    [
        ("CheckpointHook", True),
        ("'mmengine.CheckpointHook'", True),
        ("'mmengine.hooks.CheckpointHook'", True),
        ("'OwnCheckpointHook'", False),
    ],
)
def test_a_checkpoint_hook_by_any_name_is_the_safe_one(data, tmp_path, kind, safe):
    """But for one of the user's own."""
    hook = "\ndefault_hooks['checkpoint'] = dict(type={}, {}=2)\n"
    imports = "from mmengine.hooks import CheckpointHook\n"

    def loaded(name):
        cfg = load_config(write_config(tmp_path / "a.py", imports + DETECTOR, data, 1, hook.format(kind, name)))
        _add_hooks(cfg)
        return cfg.default_hooks.checkpoint

    assert (loaded("interval").type == "AtomicCheckpointHook") == safe
    if safe:
        with pytest.raises(UserError, match=r"checkpoint\.max_keep_ckpt is not taken by anything; did you mean max"):
            loaded("max_keep_ckpt")


def test_resume_with_nothing_to_resume_starts(data, tmp_path):
    config = write_config(tmp_path / "start.py", DETECTOR, data, epochs=1)
    assert cli.main(["train", str(config), "--work-dir", str(tmp_path / "w"), "--resume"]) == 0
    assert last_checkpoint(tmp_path / "w") == tmp_path / "w" / "epoch_1.pth"


def test_amp_asks_for_a_gpu(data, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    config = write_config(tmp_path / "amp.py", DETECTOR, data)
    assert cli.main(["train", str(config), "--work-dir", str(tmp_path / "w"), "--amp"]) == 2
    assert "--amp needs a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
