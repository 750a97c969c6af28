"""Two processes on the CPU, started as torchrun does; it does so itself in the README's command and where slow."""

import json
import os

import pytest
import torch
from processes import ranks, torchrun
from tools_helpers import SEGMENTOR, write_config

from attnzoo.tools import cli
from attnzoo.tools.common import locks
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.arguments import set_work_dir
from attnzoo.tools.running.checkpoint import load_checkpoint
from attnzoo.tools.running.evaluation import evaluate

# Weight decay that shows, groups that depend on the shapes of parameters, and gradients that are always clipped.
GROUPS = """
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.5), clip_grad=dict(max_norm=0.1),
    constructor="attnzoo.LayerDecayOptimWrapperConstructor", paramwise_cfg=dict(layer_decay=0.5),
)
"""


@pytest.fixture(scope="module")
def ddp(data, tmp_path_factory):
    """A config, what two processes with whole models make of it in two epochs, and what they say."""
    folder = tmp_path_factory.mktemp("ddp")
    config = write_config(folder / "two.py", SEGMENTOR, data, epochs=2, extra=GROUPS)
    done = ranks(folder, "attnzoo.tools.train", config, "--launcher", "pytorch", "--work-dir", folder / "w")
    assert done.returncode == 0, done.stderr[-3000:]
    return config, folder / "w" / "epoch_2.pth", done.stdout


@pytest.mark.long
def test_training_and_test_of_two_processes(ddp, tmp_path):
    config, checkpoint, said = ddp
    # Eight images, two a step and process.
    assert load_checkpoint(checkpoint)["meta"]["iter"] == 4
    assert said.count("trained 2 epochs, 4 iterations") == 1
    assert "mIoU" in next(checkpoint.parent.glob("*/*.log")).read_text()
    assert not list(checkpoint.parent.rglob("*.tmp*"))

    out = tmp_path / "metrics.json"
    arguments = [config, checkpoint, "--launcher", "pytorch", "--work-dir", tmp_path / "t", "--out", out]
    done = ranks(tmp_path, "attnzoo.tools.test", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 < json.loads(out.read_text())["mIoU"] <= 100


@pytest.mark.long
@pytest.mark.parametrize("start", [ranks, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_a_work_directory_in_use_ends_all_processes(ddp, tmp_path, start):
    config, _, _ = ddp
    with locks.locked(tmp_path / "w" / locks.LOCK, "it"):
        done = start(tmp_path, "attnzoo.tools.train", config, "--launcher", "pytorch", "--work-dir", tmp_path / "w")
    assert done.returncode != 0
    assert done.stderr.count(f"another run is at work there (process {os.getpid()} ") == 1
    assert not list((tmp_path / "w").iterdir())


@pytest.mark.long
@pytest.mark.parametrize("blocks", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sharded_training_is_ddp(tmp_path, ddp, blocks):
    """Sharded from the start, and resumed after one epoch: the second depends on the optimizer's state.

    Sums run in another order over shards: 1e-6 is allowed, of weights whose steps are 1e-3.
    """
    config, expected, _ = ddp
    options = ["strategy.type=FSDPStrategy", f"strategy.blocks={blocks}", "default_hooks.checkpoint.max_keep_ckpts=2"]
    # Checkpoints are written again after a validation that is the best so far.
    options += ["train_cfg.val_interval=1", "default_hooks.checkpoint.save_best=mIoU"]
    train = ["attnzoo.tools.train", config, "--launcher", "pytorch", "--cfg-options", *options]
    for folder, resume in (("w", []), ("resumed", ["--resume", tmp_path / "w" / "epoch_1.pth"])):
        done = ranks(tmp_path, *train, "--work-dir", tmp_path / folder, *resume)
        assert done.returncode == 0, done.stderr[-3000:]
        checkpoint = tmp_path / folder / "epoch_2.pth"
        content = load_checkpoint(checkpoint)
        assert (content["meta"]["epoch"], content["meta"]["iter"]) == (2, 4)
        for key, value in load_checkpoint(expected)["state_dict"].items():
            torch.testing.assert_close(content["state_dict"][key], value, rtol=0, atol=1e-6, msg=key)
    first = load_checkpoint(tmp_path / "w" / "epoch_1.pth")
    assert (first["meta"]["epoch"], first["meta"]["iter"]) == (1, 2)
    assert "best_score" in first["message_hub"]["runtime_info"]
    first = first["state_dict"]
    assert any((first[key] - value).abs().max() > 1e-3 for key, value in content["state_dict"].items())
    assert not list(tmp_path.rglob("*.tmp*"))

    cfg = load_config(config)
    set_work_dir(cfg, str(tmp_path / "t"))
    assert evaluate(cfg, checkpoint) == pytest.approx(evaluate(cfg, expected), abs=0.1)

    damaged = tmp_path / "damaged.pth"
    content["optimizer"]["param_groups"][0]["lr"] = "x"
    torch.save(content, damaged)
    done = ranks(tmp_path, *train, "--work-dir", tmp_path / "refused", "--resume", damaged)
    assert done.returncode != 0
    assert "damaged.pth: the state of the optimizer cannot be used: param_groups[0].lr is 'x'" in done.stderr


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("strategy = dict(type='FSDPStrategy')", "strategy is for several processes"),
        ("strategy = dict(type='FSDPStrategy', state_dict_cfg='local')", "must be 'full', got 'local'"),
        ("strategy = dict(type='FSDPStrategy'); custom_hooks = [dict(type='EMAHook')]", "EMAHook averages whole"),
        ("strategy = dict(type='mmengine.FSDPStrategy'); custom_hooks = [dict(type='mmengine.EMAHook')]", "EMAHook"),
        ("model_wrapper_cfg = dict(type='MMFullyShardedDataParallel')", "write strategy=dict(type='FSDPStrategy'"),
    ],
)
def test_strategies_that_cannot_work(data, tmp_path, capsys, extra, expected):
    config = write_config(tmp_path / "a.py", SEGMENTOR, data, extra=extra)
    assert cli.main(["train", str(config), "--work-dir", str(tmp_path / "w")]) == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1
    assert not (tmp_path / "w").exists()
