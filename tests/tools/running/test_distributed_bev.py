"""A recipe in bird's-eye view in two processes on the CPU: what one process makes of batches twice as large."""

import json

import pytest
import torch
from bev_recipes import make_drives, reduced_config, small_model, write_recipe
from processes import ranks, torchrun

from attnzoo.tools import cli
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.checkpoint import load_checkpoint

EPOCHS = 2
# Nothing is drawn at random: neither pixels and masks, nor the history, of which scenes of three samples have no
# choice. Steps are the gradients themselves; there are more queries than objects, so that samples match unlike numbers.
STILL = {
    "model.detection_head.num_query": 100,
    "model.data_preprocessor.grid_mask": None,
    "optim_wrapper.optimizer": dict(type="SGD", lr=0.01),
    "param_scheduler": [],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_drives(tmp_path_factory.mktemp("bev") / "drives", scenes=2, held_out=3, samples=3)


@pytest.mark.long
@pytest.mark.parametrize("start", [ranks, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_two_processes_are_one(root, tmp_path, start):
    name = "bevformer/bevformer-tiny_r50_24e_nuscenes"
    steps = [step for step in load_config(name).train_pipeline if "Distortion" not in step.type]
    # Tests draw weights otherwise than a program of its own does.
    torch.save(small_model(reduced_config(name, root, **STILL)).state_dict(), tmp_path / "start.pth")
    options = {**STILL, "train_dataloader.dataset.pipeline": steps, "load_from": str(tmp_path / "start.pth")}
    config = write_recipe(tmp_path / "recipe.py", name, root, EPOCHS, **options)
    group = ["--launcher", "pytorch"]
    done = start(tmp_path, "attnzoo.tools.train", config, *group, "--work-dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    larger = ["--cfg-options", "train_dataloader.batch_size=2"]
    assert cli.main(["train", str(config), "--work-dir", str(tmp_path / "one"), *larger]) == 0
    checkpoint = tmp_path / "two" / f"epoch_{EPOCHS}.pth"
    two, one = (load_checkpoint(tmp_path / folder / checkpoint.name) for folder in ("two", "one"))
    # Six samples, two a step.
    assert two["meta"]["iter"] == one["meta"]["iter"] == 3 * EPOCHS
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=0, atol=1e-5, msg=key)

    # Three scenes to test: one process has two of them.
    arguments = [config, checkpoint, "--work-dir", tmp_path / "t", "--out"]
    done = start(tmp_path, "attnzoo.tools.test", *arguments, tmp_path / "two.json", *group)
    assert done.returncode == 0, done.stderr[-3000:]
    assert cli.main(["test", *map(str, [*arguments, tmp_path / "one.json"])]) == 0
    left, right = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert left == pytest.approx(right, abs=1e-9) and "NDS" in left


@pytest.mark.slow
def test_every_part_of_dfa3d_has_a_gradient_in_each_process(root, tmp_path):
    """DDP waits for all of them: a second step would say which had none."""
    config = write_recipe(tmp_path / "two.py", "bevformer/bevformer-tiny-dfa3d_van-b2_24e_nuscenes", root, 1)
    done = ranks(tmp_path, "attnzoo.tools.train", config, "--launcher", "pytorch", "--work-dir", tmp_path / "w")
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_checkpoint(tmp_path / "w" / "epoch_1.pth")["meta"]["iter"] == 3
