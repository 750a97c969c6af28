"""Killed by SIGKILL at two bad moments, then resumed: the run ends as one that was left in peace.

Generators are seeded anew at every iteration, so both runs draw the same. The noise that is allowed is 1e-6 of a weight
and of a metric.
"""

import multiprocessing
import pickle
import random
import shutil
import signal
from types import SimpleNamespace

import interpreters
import numpy as np
import pytest
import torch
from bev_recipes import make_drives, write_recipe
from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from tools_helpers import DETECTOR, ENVIRONMENT, write_config
from torch.utils.data import BatchSampler, DataLoader, Dataset

from attnzoo.tools import cli
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.arguments import set_work_dir
from attnzoo.tools.running.batches import NumberedBatches, end_workers, number_batches
from attnzoo.tools.running.checkpoint import load_checkpoint
from attnzoo.tools.running.evaluation import evaluate
from attnzoo.tools.running.hooks.exactness import ReseedHook, _inexact
from attnzoo.tools.running.work_dir import last_checkpoint

pytestmark = pytest.mark.long

EPOCHS = 6
NOISE = 1e-6
# Dropped paths draw from torch's generator in the model, flips from numpy's in the data.
EXTRA = "\nmodel['backbone']['drop_path_rate'] = 0.2\n"
PRELUDE = """
import os, pathlib, signal, sys
from attnzoo.tools import cli
from attnzoo.tools.running.hooks.progress import ProgressHook
"""
# In the third iteration of the fifth epoch.
MID_EPOCH = """
after = ProgressHook.after_train_iter
def kill(self, runner, *arguments, **options):
    if runner.iter == 4 * 4 + 2:
        os.kill(os.getpid(), signal.SIGKILL)
    after(self, runner, *arguments, **options)
ProgressHook.after_train_iter = kill
"""
# When half of the fifth checkpoint is on the disk.
MID_SAVE = """
count = 0
def kill(path, content):
    global count
    count += 1
    if count == 5:
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    with open(path, "wb") as file:
        file.write(content)
pathlib.Path.write_bytes = kill
"""


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("resume") / "resume.py", DETECTOR, data, EPOCHS, EXTRA)


@pytest.fixture(scope="module")
def undisturbed(config):
    torch.set_num_threads(1)
    folder = config.parent / "undisturbed"
    assert cli.main(["train", str(config), "--work-dir", str(folder)]) == 0
    return folder / f"epoch_{EPOCHS}.pth"


def metrics_of(config, checkpoint):
    cfg = load_config(config)
    set_work_dir(cfg, str(checkpoint.parent / "test"))
    return evaluate(cfg, checkpoint)


def check_killed_and_resumed(config, undisturbed, folder, moment):
    """Four steps an epoch."""
    arguments = ["train", str(config), "--work-dir", str(folder)]
    script = f"{PRELUDE}{moment}\nsys.exit(cli.main({arguments!r}))"
    victim = interpreters.run(script, env=ENVIRONMENT, imports=interpreters.TRAINING)
    assert victim.returncode == -signal.SIGKILL, victim.stderr[-2000:]
    assert [path.name for path in folder.glob("*.pth") if not path.name.startswith(".")] == ["epoch_4.pth"]
    assert last_checkpoint(folder) == folder / "epoch_4.pth"
    assert load_checkpoint(folder / "epoch_4.pth")["meta"]["iter"] == 16

    assert cli.main([*arguments, "--resume"]) == 0
    resumed = folder / f"epoch_{EPOCHS}.pth"
    left, right = load_checkpoint(resumed), load_checkpoint(undisturbed)
    assert left["meta"]["iter"] == right["meta"]["iter"] == 4 * EPOCHS
    for key, value in right["state_dict"].items():
        torch.testing.assert_close(left["state_dict"][key], value, rtol=0, atol=NOISE, msg=key)
    rates = [[group["lr"] for group in content["optimizer"]["param_groups"]] for content in (left, right)]
    assert rates[0] == rates[1]
    expected = metrics_of(config, undisturbed)
    assert metrics_of(config, resumed) == pytest.approx(expected, abs=NOISE)
    return expected


@pytest.mark.parametrize("moment", [MID_EPOCH, MID_SAVE], ids=["mid-epoch", "mid-save"])
def test_killed_and_resumed_is_undisturbed(config, undisturbed, tmp_path, moment):
    expected = check_killed_and_resumed(config, undisturbed, tmp_path / "killed", moment)
    assert expected["coco/bbox_mAP_50"] > 0.2, "a score at which a difference would show"


@pytest.mark.slow
def test_a_recipe_in_birds_eye_view_is_resumed_likewise(tmp_path):
    """History, distortions, dropout and grids of holes are drawn at random."""
    root = make_drives(tmp_path / "drives")
    dropout = {f"model.{part}.dropout": 0.1 for part in ("bev_encoder", "detection_head")}
    name = "bevformer/bevformer-tiny-dfa3d_van-b2_24e_nuscenes"
    recipe = write_recipe(tmp_path / "recipe.py", name, root, EPOCHS, **dropout)
    assert cli.main(["train", str(recipe), "--work-dir", str(tmp_path / "undisturbed")]) == 0
    undisturbed = tmp_path / "undisturbed" / f"epoch_{EPOCHS}.pth"
    expected = check_killed_and_resumed(recipe, undisturbed, tmp_path / "killed", MID_EPOCH)
    assert 0 < expected["NDS"] < 1


def test_resume_from_a_named_checkpoint(config, undisturbed, tmp_path):
    arguments = ["train", str(config), "--work-dir", str(tmp_path), "--resume", str(undisturbed)]
    assert cli.main([*arguments, "--cfg-options", f"train_cfg.max_epochs={EPOCHS + 1}"]) == 0
    assert load_checkpoint(tmp_path / f"epoch_{EPOCHS + 1}.pth")["meta"]["iter"] == 4 * (EPOCHS + 1)


def test_weights_alone_cannot_be_resumed(config, undisturbed, tmp_path, capsys):
    torch.save(load_checkpoint(undisturbed)["state_dict"], tmp_path / "weights.pth")
    arguments = ["train", str(config), "--work-dir", str(tmp_path / "w"), "--resume", str(tmp_path / "weights.pth")]
    assert cli.main(arguments) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


WORKERS = """
train_dataloader["dataset"]["pipeline"].insert(
    -1, dict(type="attnzoo.Albumentations", transforms=[dict(type="RandomBrightnessContrast", p=1.0)])
)
train_dataloader.update(num_workers={workers}, persistent_workers={workers} > 0)
train_cfg["val_interval"] = 100
default_hooks["checkpoint"]["max_keep_ckpts"] = -1
optim_wrapper["accumulative_counts"] = 3
del randomness
"""
BY_ITERATIONS = """
train_cfg = dict(type="IterBasedTrainLoop", max_iters=12, val_interval=100)
param_scheduler = []
default_hooks["checkpoint"].update(by_epoch=False, interval=5)
log_processor = dict(by_epoch=False)
train_dataloader["sampler"] = dict(type="InfiniteSampler", shuffle=True)
"""
BY_ASPECT = BY_ITERATIONS + 'train_dataloader["batch_sampler"] = dict(type="AspectRatioBatchSampler")\n'


def weights_of(path):
    return load_checkpoint(path)["state_dict"]


@pytest.mark.parametrize(
    ("extra", "first", "last"),
    [
        ("", "epoch_1.pth", "epoch_3.pth"),
        (BY_ITERATIONS, "iter_5.pth", "iter_12.pth"),
        pytest.param(BY_ASPECT, "iter_5.pth", "iter_12.pth", marks=pytest.mark.slow),
    ],
    ids=["epochs", "iterations", "aspect ratios"],
)
def test_workers_that_persist_draw_the_same_in_a_resumed_run(data, tmp_path, extra, first, last):
    """Whose number changes nothing: by epochs it is another one in the resumed run. The seed is mmengine's own.

    The checkpoint is of the midst of an accumulation.
    """
    config = write_config(tmp_path / "config.py", DETECTOR, data, 3, WORKERS.format(workers=2) + extra)
    assert cli.main(["train", str(config), "--work-dir", str(tmp_path / "whole")]) == 0
    assert not multiprocessing.active_children(), "workers wait for a collection of garbage"
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / first, tmp_path / "resumed")
    if not extra:
        config = write_config(tmp_path / "config.py", DETECTOR, data, 3, WORKERS.format(workers=0))
    assert cli.main(["train", str(config), "--work-dir", str(tmp_path / "resumed"), "--resume"]) == 0
    whole, resumed = (weights_of(tmp_path / name / last) for name in ("whole", "resumed"))
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_workers_of_an_evaluation_end_with_it(config, undisturbed, tmp_path):
    options = {"test_dataloader.num_workers": 1, "test_dataloader.persistent_workers": True}
    cfg = load_config(config, options)
    set_work_dir(cfg, str(tmp_path))
    evaluate(cfg, undisturbed)
    assert not multiprocessing.active_children(), "workers wait for a collection of garbage"


@pytest.mark.parametrize("persistent", [False, True])
def test_a_run_whose_workers_have_ended_can_go_on(persistent):
    loader = DataLoader(range(8), batch_size=2, num_workers=1, persistent_workers=persistent)
    loop = SimpleNamespace(dataloader=loader, dataloader_iterator=_InfiniteDataloaderIterator(loader))
    runner = SimpleNamespace(_train_loop=loop, _val_loop=None, _test_loop=dict(type="TestLoop"))
    for _ in range(2):
        assert next(loop.dataloader_iterator).tolist() == [0, 1] and multiprocessing.active_children()
        end_workers(runner)
        assert not multiprocessing.active_children()
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    end_workers(runner)


def test_items_are_seeded_by_their_place_alone():
    def drawn(batch):
        return [(index, random.random(), np.random.rand(), torch.rand(()).item()) for index in batch]

    batches = NumberedBatches(BatchSampler(range(6), 2, drop_last=False), seed=1, rank=0)
    first, second = list(batches), list(batches)
    assert [batch.place for batch in first + second] == [(1, 0, number) for number in range(6)]
    assert drawn(pickle.loads(pickle.dumps(first[1]))) == drawn(first[1])
    values = [item[1:] for batch in first + second for item in drawn(batch)]
    assert len(set(values)) == 12 and [len(batches), batches.batch_size] == [3, 2]
    other = NumberedBatches(batches.batches, seed=1, rank=1)
    assert not set(values) & {item[1:] for batch in other for item in drawn(batch)}
    # To be sent to a worker, a batch seeds nothing here.
    random.seed(0)
    state = random.getstate()
    pickle.dumps(first[1])
    assert random.getstate() == state


def test_what_a_resumed_run_has_lost_is_told():
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    loader = dict(dataset=dict(dataset=dict(pipeline=[dict(type="Resize"), dict(type="mmdet.CachedMixUp")])))

    def told(path, count, gradients, loader, *hooks):
        wrapper = SimpleNamespace(_inner_count=count, _accumulative_counts=3, _max_counts=10)
        cfg = SimpleNamespace(train_dataloader=loader)
        runner = SimpleNamespace(optim_wrapper=wrapper, train_loop=loop, _load_from=path, cfg=cfg, hooks=hooks)
        return [reason.partition(" ")[0] for reason in _inexact(runner, gradients)]

    assert told("iter_5.pth", 5, False, loader) == ["the", "it", "CachedMixUp"]
    assert told("epoch_1.pth", 5, True, {}) == told("epoch_1.pth", 6, False, {}) == []
    assert told("epoch_1.pth", 6, False, {}, EarlyStoppingHook(monitor="mIoU")) == ["EarlyStoppingHook"]
    assert told("epoch_1.pth", 10, False, {}) == [], "the last step takes what is left"
    loop.fast_forward_on_resume = True
    assert told("iter_5.pth", 6, False, {}) == ["it", "fast_forward_on_resume"]


class WholeBatches(Dataset):
    """Loads a batch at once, for which torch gives a list, and draws once for all of it."""

    def __getitem__(self, index):
        return index

    def __len__(self):
        return 6

    def __getitems__(self, indices):
        assert isinstance(indices, list)
        random.shuffle(order := list(range(len(indices))))
        return [(indices[place], random.random()) for place in order]


def test_batches_that_are_loaded_at_once_are_seeded_by_their_place_alone():
    def loaded(workers, first=0):
        loader = DataLoader(WholeBatches(), batch_size=2, num_workers=workers, collate_fn=list)
        number_batches(loader, seed=1, rank=0)
        loader.batch_sampler.count = first
        return list(pickle.loads(pickle.dumps(loader.dataset)).__getitems__([4, 5])), list(loader)

    alone, batches = loaded(0)
    assert sorted(index for batch in batches for index, _ in batch) == list(range(6)) and len(alone) == 2
    random.seed(5)
    assert loaded(2)[1] == batches
    assert loaded(0, first=3)[1] != batches


@pytest.mark.parametrize("quick", [False, True])
def test_batches_that_are_not_skipped_are_counted(quick):
    """As those that are skipped are by the loop."""
    loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    loop.fast_forward_on_resume = quick
    loader = DataLoader(range(6), batch_size=2)
    number_batches(loader, seed=1, rank=0)
    ReseedHook().before_train_epoch(SimpleNamespace(seed=1, iter=5, train_dataloader=loader, train_loop=loop))
    assert loader.batch_sampler.count == (5 if quick else 0)
