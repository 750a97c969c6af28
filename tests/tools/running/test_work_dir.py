"""What a training may write and remove in its work directory, and what it says where it stops."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tools_helpers import DETECTOR, SEGMENTOR, contents, error_line, run_training, write_config

from attnzoo.tools import cli
from attnzoo.tools.common import locks
from attnzoo.tools.config.inputs import read_files
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.arguments import set_work_dir
from attnzoo.tools.running.checkpoint import load_checkpoint
from attnzoo.tools.running.work_dir import checkpoint_folder, last_checkpoint, own_checkpoint, trainings

BEST = "\ntrain_cfg['val_interval'] = 1\ndefault_hooks['checkpoint'].update(save_best='mIoU', max_keep_ckpts=2)\n"


@pytest.fixture(scope="module")
def older(data, tmp_path_factory):
    """A config and the work directory of its training, of two epochs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("older")
    config = write_config(folder / "config.py", SEGMENTOR, data, epochs=2, extra=BEST)
    assert run_training(config, folder / "work") == 0
    return config, folder / "work"


@pytest.fixture
def place(older, tmp_path):
    """The same in a folder of one's own."""
    shutil.copy(older[0], tmp_path / "config.py")
    shutil.copytree(older[1], tmp_path / "work")
    (tmp_path / "work" / "last_checkpoint").write_text(str(tmp_path / "work" / "epoch_2.pth"))
    return tmp_path


def test_an_older_training_is_refused(place, capsys):
    before = contents(place)
    assert run_training(place / "config.py", place / "work") == 2
    said = error_line(capsys)
    assert "work: holds an older training (" in said
    assert all(option in said for option in ("--resume", "--overwrite", "--work-dir"))
    assert contents(place) == before


@pytest.mark.parametrize("left", ["epoch_1.pth", "iter_500.pth", "best_mIoU_epoch_3.pth", "last_checkpoint", "log"])
def test_each_trace_of_a_training_counts(older, tmp_path, left):
    if left == "log":
        log = next(older[1].glob("*/*.log"))
        (tmp_path / log.parent.name).mkdir()
        shutil.copy(log, tmp_path / log.parent.name)
    else:
        (tmp_path / left).write_text("x")
    assert len(trainings(tmp_path)) == 1


def test_evaluations_and_other_files_are_no_training(older, tmp_path):
    cfg = load_config(older[0])
    set_work_dir(cfg, str(tmp_path))
    from attnzoo.tools.running.evaluation import evaluate

    evaluate(cfg, older[1] / "epoch_2.pth")
    for name in ("model.pth", "best_model.pth", "epoch_last.pth", "my_epoch_1.pth", "notes.txt"):
        (tmp_path / name).write_text("mine")
    assert trainings(tmp_path) == []
    assert not list(tmp_path.glob("*.py")), "its log folder has the config"
    assert run_training(older[0], tmp_path, "--cfg-options", "train_cfg.max_epochs=1") == 0


def test_overwrite_removes_what_runs_have_written_and_nothing_else(place):
    work = place / "work"
    log_folder = next(path for path in work.iterdir() if path.is_dir())
    kept = work / "config.py"
    mine = ["notes.txt", "model.pth", "best_model.pth", "epoch_1.pth.bak", f"{log_folder.name}/notes.txt", "results/a"]
    for name in mine:
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text("mine")
    (work / "other.py").write_text("model = dict()")
    assert run_training(place / "config.py", work, "--overwrite", "--cfg-options", "train_cfg.max_epochs=1") == 0
    found = contents(work)
    assert all(found[name] == b"mine" for name in mine) and found["other.py"] == b"model = dict()"
    assert sorted(path.name for path in work.glob("*_?.pth")) == ["best_mIoU_epoch_1.pth", "epoch_1.pth"]
    assert sorted(path.name for path in log_folder.iterdir()) == ["notes.txt"]
    assert "max_epochs=1" in kept.read_text()
    assert not (work / locks.LOCK).exists()


def test_overwrite_does_not_remove_what_is_read(place, capsys):
    work = place / "work"
    before = contents(place)
    start = f"load_from={work / 'epoch_1.pth'}"
    assert run_training(place / "config.py", work, "--overwrite", "--cfg-options", start) == 2
    assert "epoch_1.pth: is read by this command" in error_line(capsys)
    assert run_training(place / "config.py", work, "--overwrite", "--resume") == 2
    assert "give one of them" in error_line(capsys)
    assert contents(place) == before


def test_the_kept_config_is_no_loss(place):
    """It is trained from, or edited, or a file of the user's: it stays as it is."""
    work = place / "work"
    kept = (work / "config.py").read_text()
    assert run_training(work / "config.py", work, "--overwrite", "--cfg-options", "train_cfg.max_epochs=1") == 0
    assert (work / "config.py").read_text() == kept
    edited = kept + "\n# my notes\n"
    (work / "config.py").write_text(edited)
    assert run_training(place / "config.py", work, "--overwrite", "--cfg-options", "train_cfg.max_epochs=1") == 0
    assert (work / "config.py").read_text() == edited


def test_the_config_itself_is_not_replaced(older, tmp_path, monkeypatch):
    shutil.copy(older[0], tmp_path / "config.py")
    monkeypatch.chdir(tmp_path)
    assert run_training("config.py", ".", "--cfg-options", "train_cfg.max_epochs=1") == 0
    assert Path("config.py").read_bytes() == older[0].read_bytes()


@pytest.mark.long
def test_evaluation_in_the_work_directory_of_a_training(place, capsys):
    work = place / "work"
    before = contents(work)
    arguments = ["test", str(place / "config.py"), str(work / "epoch_2.pth"), "--work-dir", str(work)]
    assert cli.main([*arguments, "--cfg-options", "val_dataloader.batch_size=2"]) == 0
    after = contents(work)
    assert {name: after[name] for name in before} == before
    assert run_training(place / "config.py", work, "--resume", "--cfg-options", "train_cfg.max_epochs=3") == 0


def test_outputs_of_test_are_no_inputs(place, capsys):
    before = contents(place)
    config, checkpoint = place / "config.py", place / "work/epoch_2.pth"
    arguments = ["test", str(config), str(checkpoint), "--work-dir", str(place / "t"), "--out"]
    for out, said in ((config, "is read by"), (checkpoint, "is read by"), (place / "work/last_checkpoint", "there al")):
        assert cli.main([*arguments, str(out)]) == 2
        assert said in error_line(capsys)
    assert contents(place) == before
    base, top = place / "base.py", place / "top.py"
    shutil.copy(config, base)
    top.write_text("_base_ = ['base.py']\n")
    cfg = load_config(config)
    image = Path(cfg.test_dataloader.dataset.data_root) / "images" / "7.jpg"
    pixels = image.read_bytes()
    arguments[1] = str(top)
    for out, said in ((base, "is read by"), (image, "stands in"), (place, "is a folder")):
        assert cli.main([*arguments, str(out), "--overwrite"]) == 2
        assert said in error_line(capsys)
    assert base.read_bytes() == config.read_bytes() and image.read_bytes() == pixels
    out = place / "metrics.json"
    out.write_text("mine")
    assert cli.main([*arguments, str(out)]) == 2
    assert "give --overwrite" in error_line(capsys) and out.read_text() == "mine"
    assert cli.main([*arguments, str(out), "--overwrite"]) == 0
    assert "mIoU" in out.read_text()


@pytest.mark.parametrize("folder", ["", "images", "maps"])
def test_data_and_work_do_not_mix(data, older, capsys, folder):
    before = contents(data)
    assert run_training(older[0], data / folder) == 2
    assert "is read by this command" in error_line(capsys)
    checkpoint = str(older[1] / "epoch_2.pth")
    assert cli.main(["test", str(older[0]), checkpoint, "--work-dir", str(data / folder)]) == 2
    assert contents(data) == before


def test_a_second_training_is_refused_by_the_number_of_the_first(older, tmp_path, capsys):
    with locks.locked(tmp_path / "work" / locks.LOCK, "it"):
        assert run_training(older[0], tmp_path / "work") == 2
        said = error_line(capsys)
        assert "work: another run is at work there" in said and f"process {os.getpid()} " in said
    assert contents(tmp_path) == {}


def test_going_back_is_refused_where_newer_checkpoints_would_be_lost(place, tmp_path, capsys):
    before = contents(place)
    first = place / "work/epoch_1.pth"
    assert run_training(place / "config.py", place / "work", "--resume", first) == 2
    assert "epoch_2.pth would be lost by going on from" in error_line(capsys)
    foreign = place / "epoch_9.pth"
    shutil.copy(place / "work/epoch_2.pth", foreign)
    assert run_training(place / "config.py", place / "work", "--resume", foreign) == 2
    assert "epoch_2.pth would be lost" in error_line(capsys)
    foreign.unlink()
    assert contents(place) == before
    newest = place / "work/epoch_2.pth"
    assert (
        run_training(place / "config.py", place / "work", "--resume", newest, "--cfg-options", "train_cfg.max_epochs=3")
        == 0
    )


def test_a_copied_work_directory_goes_on_by_itself(place):
    """Notes and records hold absolute paths, by which a copy would use and remove the files of the original."""
    work, copy = place / "work", place / "copy"
    shutil.copytree(work, copy)
    before = contents(work)
    assert last_checkpoint(copy) == copy / "epoch_2.pth"
    assert run_training(place / "config.py", copy, "--resume", "--cfg-options", "train_cfg.max_epochs=6") == 0
    assert contents(work) == before
    assert len(list(copy.glob("best_*.pth"))) == 1


def test_leftovers_of_a_killed_run_go_and_other_hidden_files_stay(place):
    work = place / "work"
    (work / ".attnzoo-0123456789ab.tmp.pth").write_bytes(b"half")
    (work / ".mine.tmp.pth").write_bytes(b"mine")
    assert run_training(place / "config.py", work, "--resume") == 0
    assert [path.name for path in work.iterdir() if path.name.startswith(".")] == [".mine.tmp.pth"]


def test_a_truncated_checkpoint_falls_back_to_the_one_before(place, capsys):
    work = place / "work"
    whole = (work / "epoch_2.pth").read_bytes()
    (work / "epoch_2.pth").write_bytes(whole[: len(whole) // 2])
    assert run_training(place / "config.py", work, "--resume") == 0
    said = error_line(capsys)
    assert said.startswith("attnzoo: warning: ") and "epoch_2.pth" in said and "the checkpoint before it" in said
    assert load_checkpoint(work / "epoch_2.pth")["meta"]["iter"] == 8

    for path in work.glob("epoch_*.pth"):
        path.write_bytes(b"")
    before = contents(work)
    assert run_training(place / "config.py", work, "--resume") == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert contents(work) == before


def test_a_checkpoint_of_another_model_is_no_truncated_one(place, capsys):
    work = place / "work"
    assert run_training(place / "config.py", work, "--resume", "--cfg-options", "model.decode_head.channels=32") == 2
    said = error_line(capsys)
    assert said.startswith("attnzoo: error: ") and "not a checkpoint of this EncoderDecoder" in said


@pytest.mark.long
def test_checkpoints_in_another_folder(data, tmp_path, capsys):
    """Of the hook's `out_dir`: atomic, locked, resumed and refused as in the work directory."""
    config = write_config(tmp_path / "config.py", SEGMENTOR, data, epochs=1)
    place = f"default_hooks.checkpoint.out_dir={tmp_path / 'store'}"
    assert run_training(config, tmp_path / "work", "--cfg-options", place) == 0
    store = tmp_path / "store" / "work"
    cfg = load_config(config, {"default_hooks.checkpoint.out_dir": str(tmp_path / "store")})
    set_work_dir(cfg, str(tmp_path / "work"))
    assert checkpoint_folder(cfg) == store
    assert load_checkpoint(store / "epoch_1.pth")["superseded"] == [], "written by the atomic backend"
    shutil.rmtree(tmp_path / "work")
    before = contents(tmp_path)
    assert run_training(config, tmp_path / "work", "--cfg-options", place) == 2
    assert "store/work: holds an older training (epoch_1.pth)" in error_line(capsys)
    assert contents(tmp_path) == before
    # Without the note, and with one that a kill has left empty.
    for note in (None, ""):
        if note is not None:
            (tmp_path / "work" / "last_checkpoint").write_text(note)
        assert run_training(config, tmp_path / "work", "--resume", "--cfg-options", place) == 0
        assert f"trained 1 epochs, 4 iterations: {store / 'epoch_1.pth'}" in capsys.readouterr().out
        assert contents(store) == {name[11:]: held for name, held in before.items() if name.startswith("store/work/")}


def test_a_work_directory_of_a_path_is_the_folder_of_checkpoints(data, tmp_path, monkeypatch):
    """By its absolute path alone, as for mmengine."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "config.py", SEGMENTOR, data)
    for out_dir, folder in ((str(tmp_path / "work"), "work"), ("work", "work/work")):
        cfg = load_config(config, {"default_hooks.checkpoint.out_dir": out_dir})
        set_work_dir(cfg, "work")
        assert checkpoint_folder(cfg) == Path(folder)


def test_a_note_without_its_checkpoint_starts_nothing(place, capsys):
    for path in place.glob("work/*.pth"):
        path.unlink()
    before = contents(place)
    assert run_training(place / "config.py", place / "work", "--resume") == 2
    said = f"last_checkpoint: is there, but not the checkpoint that it names ({place / 'work' / 'epoch_2.pth'})"
    assert said in error_line(capsys)
    assert contents(place) == before


def test_published_checkpoints_are_whole(data, tmp_path):
    config = write_config(tmp_path / "config.py", SEGMENTOR, data, epochs=1, extra=BEST)
    keys = "default_hooks.checkpoint.published_keys=['meta','state_dict']"
    assert run_training(config, tmp_path / "work", "--cfg-options", keys) == 0
    published = sorted(path for path in (tmp_path / "work").glob("*-*.pth"))
    assert [path.name.rpartition("-")[0] for path in published] == ["best_mIoU_epoch_1", "epoch_1"]
    content = torch.load(published[1], weights_only=True, map_location="cpu")
    assert set(content) == {"meta", "state_dict"}


def test_two_runs_in_one_second_share_nothing(data, tmp_path):
    from attnzoo.tools.running.engine import ProgressHook, build_runner

    runners = []
    for _ in range(2):
        cfg = load_config(write_config(tmp_path / "config.py", SEGMENTOR, data))
        set_work_dir(cfg, str(tmp_path / "work"))
        runners.append(build_runner(cfg, ProgressHook()))
    one, other = runners
    assert one.timestamp != other.timestamp and one.log_dir != other.log_dir
    assert one.message_hub is not other.message_hub and one.visualizer is not other.visualizer


def test_a_run_that_cannot_be_built_removes_nothing_of_another(data, tmp_path, capsys):
    config = write_config(tmp_path / "config.py", DETECTOR, data)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("mine")
    assert run_training(config, tmp_path / "work", "--cfg-options", "train_cfg.type=NoLoop") == 2
    assert contents(tmp_path / "work") == {"notes.txt": b"mine"}


def spoil(path, **changes):
    """Write other records into a checkpoint, which may come from anybody."""
    content = load_checkpoint(path)
    content["message_hub"]["runtime_info"].update(changes.pop("info", {}))
    content["meta"].update(changes.pop("meta", {}))
    torch.save({**content, **changes}, path)


def on(config, work_dir, *options):
    return run_training(config, work_dir, "--resume", *options, "--cfg-options", "train_cfg.max_epochs=3")


def test_a_checkpoint_names_no_files_of_the_users_for_removal(place):
    work, victims = place / "work", place / "victims"
    victims.mkdir()
    for path in (work / "notes.txt", victims / "x.pth", victims / "epoch_1.pth", work / "best_model.pth"):
        path.write_text("mine")
    (work / "epoch_0.pth").symlink_to(victims / "epoch_1.pth")
    names = ["notes.txt", "../victims/epoch_1.pth", str(victims / "epoch_1.pth"), "best_model.pth", "epoch_2.pth", 5]
    ids = ["2", "1.pth/../../victims/x", 2]
    spoil(work / "epoch_2.pth", superseded=[*names, "epoch_0.pth"], info=dict(keep_ckpt_ids=ids))
    kept = {name: text for name, text in contents(place).items() if text == b"mine"}
    options = ["train_cfg.max_epochs=3", "default_hooks.checkpoint.max_keep_ckpts=1"]
    assert run_training(place / "config.py", work, "--resume", "--cfg-options", *options) == 0
    assert contents(place).items() >= kept.items() and (work / "epoch_0.pth").is_symlink()
    assert (work / "epoch_2.pth").is_file(), "whose ids are not trusted"


def test_a_best_checkpoint_of_another_name_stays(place):
    work = place / "work"
    for name in ("work/my_results/a.txt", "work/notes.txt", "elsewhere/notes.txt"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("mine")
    spoil(work / "epoch_2.pth", info=dict(best_ckpt=str(work / "my_results"), best_score=-1.0))
    assert on(place / "config.py", work) == 0
    assert [text for text in contents(place).values()].count(b"mine") == 3
    for best in (work / "notes.txt", place / "elsewhere/notes.txt", "epoch_1.pth/../notes.txt"):
        assert own_checkpoint(work, Path(best).name) is None and own_checkpoint(work, str(best)) is None


def test_the_resumed_checkpoint_is_the_last_to_go(place):
    work = place / "work"
    shutil.copy(work / "epoch_1.pth", work / "epoch_0.pth")
    spoil(work / "epoch_2.pth", info=dict(keep_ckpt_ids=[2, 1, 0]))
    assert on(place / "config.py", work) == 0
    assert sorted(path.name for path in work.glob("epoch_*.pth")) == ["epoch_2.pth", "epoch_3.pth"]


def test_checkpoints_of_other_names_are_refused(place, capsys):
    for name in ("model_1.pth", "epoch_1.pth"):
        (place / name).write_text("mine")
    before = contents(place)
    option = "default_hooks.checkpoint.filename_tmpl=model_{}.pth"
    assert run_training(place / "config.py", place, "--overwrite", "--cfg-options", option) == 2
    assert "filename_tmpl: checkpoints are known by their names" in error_line(capsys)
    assert contents(place) == before


@pytest.mark.parametrize(
    "option",
    [
        "val_evaluator.type=NoMetric",
        "train_dataloader.sampler.type=NoSampler",
        "custom_hooks=[dict(type='NoHook')]",
        "load_from=absent.pth",
    ],
)
def test_overwrite_removes_nothing_for_a_training_that_cannot_be_built(place, capsys, option):
    before = contents(place)
    assert run_training(place / "config.py", place / "work", "--overwrite", "--cfg-options", option) == 2
    error_line(capsys)
    assert contents(place) == before


@HOOKS.register_module(force=True)
class FailingHook(Hook):
    """Fails in an iteration, counted from 1."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            raise IndexError("Target 2 is out of bounds")


@pytest.mark.parametrize("iteration", [1, 2])
def test_overwrite_removes_after_the_first_iteration(place, iteration):
    with (place / "config.py").open("a") as file:
        file.write(f"\ncustom_hooks = [dict(type='FailingHook', iteration={iteration})]\n")
    before = contents(place)
    with pytest.raises(IndexError):
        run_training(place / "config.py", place / "work", "--overwrite")
    after = contents(place)
    logs = {name for name in after if name.startswith("work/20")}
    if iteration == 1:
        assert after.items() >= before.items() and after.keys() - before.keys() <= logs
    else:
        assert after.keys() - logs == {"config.py", "work/config.py"} and not logs & before.keys()
        assert "FailingHook" in after["work/config.py"].decode()


def test_predictions_that_a_metric_writes_replace_nothing_unasked(place, capsys):
    mine = place / "mine.bbox.json"
    mine.write_text("mine")
    arguments = ["test", str(place / "config.py"), str(place / "work/epoch_2.pth"), "--work-dir", str(place / "t")]
    assert cli.main([*arguments, "--cfg-options", f"test_evaluator.outfile_prefix={place / 'mine'}"]) == 2
    assert "mine.bbox.json: is there already" in error_line(capsys) and mine.read_text() == "mine"


def test_last_checkpoint_survives_a_broken_note(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for number in (1, 2):
        (tmp_path / f"epoch_{number}.pth").write_bytes(b"x")
    (tmp_path / "last_checkpoint").write_text("")
    assert last_checkpoint(tmp_path).name == "epoch_2.pth"
    (tmp_path / "last_checkpoint").write_text("/moved/away/epoch_2.pth")
    assert last_checkpoint(tmp_path).name == "epoch_2.pth"
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_1.pth"))
    assert last_checkpoint(tmp_path).name == "epoch_1.pth"


def test_weights_by_all_their_names_are_read(older, tmp_path):
    overlay = {"model.backbone.pretrained_cfg_overlay": {"file": "b.pth"}}
    cfg = load_config(older[0], {"model.pretrained": "a.pth", **overlay})
    assert {"a.pth", "b.pth"} <= {path.name for path in read_files(cfg)}


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        (dict(epoch=-3), r"meta.epoch is -3, and must be a whole number from 0 to train_cfg.max_epochs (3)"),
        (dict(epoch=4), "meta.epoch is 4,"),
        (dict(epoch=1.5), "meta.epoch is 1.5,"),
        (dict(iter=10**12), "meta.iter is 1000000000000,"),
        (dict(iter=None), "meta.iter is None,"),
    ],
)
def test_a_place_that_no_training_has_is_refused(place, capsys, meta, said):
    spoil(place / "work/epoch_2.pth", meta=meta)
    before = contents(place)
    assert on(place / "config.py", place / "work") == 2
    assert said in error_line(capsys)
    assert contents(place) == before


def test_an_iteration_beyond_the_last_is_refused(place, capsys):
    spoil(place / "work/epoch_2.pth", meta=dict(iter=13))
    with (place / "config.py").open("a") as file:
        file.write("\ntrain_cfg = dict(type='IterBasedTrainLoop', max_iters=12)\n")
    assert run_training(place / "config.py", place / "work", "--resume") == 2
    assert "meta.iter is 13, and must be a whole number from 0 to train_cfg.max_iters (12)" in error_line(capsys)


def test_a_damaged_state_of_the_optimizer_is_one_line(place, capsys):
    path = place / "work/epoch_2.pth"
    content = load_checkpoint(path)
    content["optimizer"]["param_groups"][0]["lr"] = "x"
    torch.save(content, path)
    before = contents(place)
    assert on(place / "config.py", place / "work") == 2
    said = "epoch_2.pth: the state of the optimizer cannot be used: param_groups[0].lr is 'x'"
    assert said in error_line(capsys)
    assert contents(place) == before


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_nothing_is_written_through_a_link(place, capsys, option):
    (place / "important.txt").write_text("mine")
    (place / "work/last_checkpoint").unlink()
    (place / "work/last_checkpoint").symlink_to("../important.txt")
    assert run_training(place / "config.py", place / "work", option) == 2
    assert "last_checkpoint: is a link" in error_line(capsys)
    assert (place / "important.txt").read_text() == "mine"
