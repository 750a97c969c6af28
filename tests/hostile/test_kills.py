"""Processes killed by SIGKILL at any moment: what they leave can be used, and nothing of it stays for ever.

A draw kills after a time, or before a change to a file, where an audit hook counts what Python opens for writing,
renames and removes. A training is then resumed until it ends: weights, optimizer state, history of metrics and the best
checkpoint are bit by bit those of a run that was left in peace.
"""

import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import campaign
import interpreters
import numpy as np
import pytest
import torch
from PIL import Image
from tools_helpers import SEGMENTOR, make_data, write_config

DRAWS = 20
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
# Dropped paths and flips draw at random; a high rate of learning makes the best come and go.
COMMON = """
model['backbone']['drop_path_rate'] = 0.2
train_dataloader['dataset']['pipeline'].insert(2, dict(type='RandomFlip', prob=0.5))
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-2))
"""
EPOCHS = """
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=6, val_interval=1)
default_hooks["checkpoint"] = dict(type="CheckpointHook", interval=1, max_keep_ckpts=1, save_best="mIoU")
"""
ITERATIONS = """
train_dataloader["sampler"] = dict(type="InfiniteSampler", shuffle=True)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=24, val_interval=4)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=24, by_epoch=False)]
default_hooks["checkpoint"] = dict(
    type="CheckpointHook", by_epoch=False, interval=4, max_keep_ckpts=2, save_best=["mIoU", "aAcc"]
)
custom_hooks = [dict(type="EMAHook", momentum=0.1, update_buffers=True)]
"""


def child(function, log, kill_at=None):
    """Call `function` in a forked process; kill that before its change number `kill_at` below the log's folder.

    Returns:
        A function that waits and gives the exit code, with a minus sign that of the signal, and the process's number.
    """
    number = os.fork()
    if number:
        return (lambda: os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])), number
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(os.dup(1), "w")
        count = itertools.count()

        def watch(event, arguments):
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in CHANGES) and str(log.parent) in str(arguments[0]) and str(log) not in str(arguments):
                here = next(count)
                if here == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                print(f"change {here}: {event}", file=sys.stderr)

        sys.addaudithook(watch)
        code = function()
    except BaseException:
        traceback.print_exc()  # os._exit below would swallow it
    finally:
        sys.stdout.flush()
        os._exit(code)


def changes(log):
    return log.read_text(errors="replace").count("\nchange ")


class Reference:
    """A training that was left in peace: its folder, how long it took, and how many files it changed."""

    def __init__(self, folder, loop):
        self.config = write_config(folder / "config.py", SEGMENTOR, folder.parent / "data", 6, COMMON + loop)
        self.folder, log = folder / "work", folder / "log.txt"
        start = time.monotonic()
        wait, _ = child(lambda: train(self.config, self.folder), log)
        assert wait() == 0, log.read_text()[-3000:]
        self.seconds, self.changes = time.monotonic() - start, changes(log)


def train(config, work_dir, *options):
    from attnzoo.tools import cli

    return cli.main(["train", str(config), "--work-dir", str(work_dir), *options])


def references(folder, loops):
    from attnzoo.tools.config import loading as config

    config.require_mm()
    import attnzoo.tools.running.engine  # noqa: F401  once, so that forked processes start quickly

    make_data(folder / "data")
    made = []
    for name, loop in loops.items():
        (folder / name).mkdir()
        made.append(Reference(folder / name, loop))
    return made


def flat(value, name=""):
    """The leaves of nested dicts and lists by their paths."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flat(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from flat(part, f"{name}.{index}")
    else:
        yield name, value


def same(one, other, what):
    one, other = dict(flat(one)), dict(flat(other))
    assert one.keys() == other.keys(), f"{what}: {one.keys() ^ other.keys()}"
    for name, value in one.items():
        equal = np.array_equal(
            np.asarray(value), np.asarray(other[name]), equal_nan=np.asarray(value).dtype.kind == "f"
        )
        assert equal, f"{what}{name}: {value} and {other[name]}"


def history(folder):
    """The last value of each metric of each validation, of all runs in a work directory."""
    found = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut by a kill
            if "mIoU" in entry:
                found[entry["step"]] = {key: entry[key] for key in ("mIoU", "aAcc", "mAcc")}
    return found


def scalars(content):
    """What the message hub keeps of losses, learning rates and metrics; not of times."""
    logs = content["message_hub"]["log_scalars"]
    kept = {name: value for name, value in logs.items() if "time" not in name and "memory" not in name}
    return {name: [np.asarray(part) for part in value.data] for name, value in kept.items()}


def compare(folder, reference):
    from attnzoo.tools.running.checkpoint import load_checkpoint

    def names(root):
        return sorted(path.name for path in root.iterdir() if not path.is_dir())

    assert names(folder) == names(reference)
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name or path.name.startswith(".")]
    for name in names(reference):
        if name.endswith(".pth"):
            one, other = load_checkpoint(folder / name), load_checkpoint(reference / name)
            for key in ("state_dict", "ema_state_dict", "optimizer", "param_schedulers"):
                same(one.get(key, {}), other.get(key, {}), f"{name} {key}")
            assert [one["meta"][key] for key in ("epoch", "iter")] == [other["meta"][key] for key in ("epoch", "iter")]
            same(scalars(one), scalars(other), f"{name} scalars")
            best = [
                {key: value for key, value in content["message_hub"]["runtime_info"].items() if "best_score" in key}
                for content in (one, other)
            ]
            same(*best, f"{name} best")
    assert history(folder) == history(reference)
    assert Path((folder / "last_checkpoint").read_text()).name == Path((reference / "last_checkpoint").read_text()).name


def kill_training(seed, references, root):
    generator = random.Random(seed)
    reference = references[seed % len(references)]
    place = root / f"draw_{seed}_{os.getpid()}"
    place.mkdir()
    work, killed = place / "work", []
    for attempt in range(1 + generator.randrange(3)):
        options = ["--resume"] if attempt else []
        log = place / f"log_{attempt}.txt"
        if generator.random() < 0.7:
            moment = generator.randrange(reference.changes // 4, reference.changes)
            wait, _ = child(lambda options=options: train(reference.config, work, *options), log, moment)
        else:
            wait, number = child(lambda options=options: train(reference.config, work, *options), log)
            time.sleep(generator.uniform(0.2, 0.9) * reference.seconds)
            os.kill(number, signal.SIGKILL)
        code = wait()
        assert code in (0, -signal.SIGKILL), log.read_text()[-3000:]
        killed.append(code != 0)
    log = place / "resumed.txt"
    wait, _ = child(lambda: train(reference.config, work, "--resume"), log)
    assert wait() == 0, log.read_text()[-3000:]
    compare(work, reference.folder)
    return f"equal after {sum(killed)} kills"


def build_digits(root):
    from attnzoo.tools.data import digits

    digits.build(root / "data", train_images=12, val_images=4)
    return 0


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def kill_build(seed, root):
    """A data set, new or in the place of another one."""
    from attnzoo.tools.data import digits

    generator = random.Random(seed)
    place = root / f"draw_{seed}_{os.getpid()}"
    place.mkdir()
    if seed % 2:
        digits.build(place / "data", train_images=3, val_images=2)
    log = place / "log.txt"
    wait, _ = child(lambda: build_digits(place), log, generator.randrange(1, 60))
    assert wait() in (0, -signal.SIGKILL), log.read_text()[-3000:]
    log.unlink()
    built = digits.build(place / "data", train_images=12, val_images=4)
    assert contents(built.root) == contents(digits.build(place / "again", train_images=12, val_images=4).root)
    assert sorted(path.name for path in place.iterdir()) == ["again", "data"]
    return "whole"


def kill_write(seed, root):
    """One output file, in the place of an older one: it is the old or the new one."""
    from attnzoo.tools.common.files import remove_leftovers, write_json

    generator = random.Random(seed)
    place = root / f"draw_{seed}_{os.getpid()}"
    place.mkdir()
    old, new = [0] * 1000, [1] * 100_000
    write_json(place / "out.json", old)
    log = place / "log.txt"

    def write():
        write_json(place / "out.json", new)
        return 0

    wait, number = child(write, log, generator.randrange(6) if seed % 2 else None)
    if not seed % 2:
        time.sleep(generator.uniform(0, 0.06))
        os.kill(number, signal.SIGKILL)
    wait()
    log.unlink(missing_ok=True)
    found = json.loads((place / "out.json").read_text())
    assert found in (old, new)
    remove_leftovers(place)
    assert [path.name for path in place.iterdir()] == ["out.json"]
    return "old" if found == old else "new"


def kill_predict(seed, references, root):
    """Pictures, label maps and the file about them: what is there under its name is whole."""
    from attnzoo.tools import cli
    from attnzoo.tools.common.files import remove_leftovers

    generator, reference = random.Random(seed), references[0]
    place = root / f"draw_{seed}_{os.getpid()}"
    place.mkdir()
    log, out = place / "log.txt", place / "out"
    checkpoint, images = reference.folder / "epoch_6.pth", reference.folder.parent.parent / "data" / "images"
    command = ["predict", str(reference.config), str(checkpoint), str(images), "--out-dir", str(out)]
    wait, _ = child(lambda: cli.main(command), log, generator.randrange(60))
    code = wait()
    assert code in (0, -signal.SIGKILL), log.read_text()[-3000:]
    if out.is_dir():
        remove_leftovers(out)
    for path in out.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with Image.open(path) as image:
                image.load()
    return "ended before" if code == 0 else "killed"


@pytest.mark.long
def test_killed_runs():
    """Trainings and predictions."""
    campaign.in_own_interpreter(__file__, interpreters.TRAINING)


@pytest.mark.long
def test_killed_builds_of_the_data_set(tmp_path):
    campaign.campaign("killed builds of a data set", lambda seed: kill_build(seed, tmp_path), 250)


def test_killed_writes(tmp_path):
    campaign.campaign("killed writes of a file", lambda seed: kill_write(seed, tmp_path), 500)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        # The suite has one draw.
        loops = {"epochs": EPOCHS, **({"iterations": ITERATIONS} if campaign.WHOLE else {})}
        peaceful = references(place, loops)
        if campaign.WHOLE:
            campaign.campaign("killed trainings", lambda seed: kill_training(seed, peaceful, place), DRAWS, seconds=300)
        else:
            kill_training(0, peaceful, place)
        campaign.campaign("killed predictions", lambda seed: kill_predict(seed, peaceful, place), 100)
