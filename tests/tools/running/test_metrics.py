"""What metrics write takes the place of nothing."""

import pytest
from tools_helpers import DETECTOR, SEGMENTOR, write_config

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.config.loading import load_config
from attnzoo.tools.running.metrics import check_evaluator
from attnzoo.tools.running.work_dir import keep_config


def evaluating(place, metric, kind=DETECTOR):
    """A config whose metric of both modes is this one."""
    write_config(place / "config.py", kind, place / "data", 1, f"\nval_evaluator = test_evaluator = {metric}\n")
    cfg = load_config("config.py")
    cfg.work_dir = "work"
    check_evaluator(cfg, "val")
    return cfg


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    for name in ("maps", "images"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_text("ground truth")
    (tmp_path / "data" / "train.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mode", ["val", "test"])
@pytest.mark.parametrize(
    ("metric", "file"),
    [
        ("[dict(type='DumpDetResults', out_file_path='a.pkl')]", "a.pkl"),
        ("dict(type='CocoMetric', outfile_prefix='a')", "a.bbox.json"),
        ("dict(type='mmdet.CocoMetric', outfile_prefix='a')", "a.gt.json"),
        ("dict(type='CrowdHumanMetric', outfile_prefix='a')", "a.json"),
        ("dict(type='YouTubeVISMetric', outfile_prefix='a')", "a.submission_file.zip"),
        ("dict(metrics=[dict(type='CocoPanopticMetric', outfile_prefix='a')])", "a.panoptic/0.png"),
        ("dict(type='DumpProposals', output_dir='a')", "a/proposals.pkl"),
        ("dict(type='mmseg.IoUMetric', output_dir='a')", "a/0.png"),
        ("dict(type='Own', output_dir='a')", "a/0.txt"),
        ("dict(type='mmseg.CityscapesMetric', output_dir='a', keep_results=True)", "a/0.png"),
        ("dict(type='mmseg.CityscapesMetric', output_dir='a')", "a/0.png"),
        ("dict(type='CityScapesMetric', outfile_prefix='a')", "a/results/0_pred.txt"),
    ],
)
def test_what_a_metric_would_write_over(somewhere, mode, metric, file):
    cfg = evaluating(somewhere, metric)
    (somewhere / file).parent.mkdir(exist_ok=True, parents=True)
    (somewhere / file).write_text("mine")
    with pytest.raises(UserError, match=rf"{file}: is there already: .*--overwrite"):
        check_evaluator(cfg, mode)
    check_evaluator(cfg, mode, overwrite=True)
    # The training that has written it goes on; the config of another one says nothing of it.
    cfg.resume = True
    (somewhere / "work").mkdir()
    other = load_config("config.py", {"work_dir": "work"})
    other.val_evaluator = other.test_evaluator = None
    keep_config(other)
    with pytest.raises(UserError, match="is there already"):
        check_evaluator(cfg, mode)
    keep_config(cfg)
    check_evaluator(cfg, mode)


@pytest.mark.parametrize(
    "metric",
    [
        "dict(type='CityScapesMetric', outfile_prefix='.')",
        "dict(type='MOTChallengeMetric', outfile_prefix='results')",
        "dict(type='mmseg.CityscapesMetric', output_dir='results')",
    ],
)
def test_folders_that_a_metric_would_remove(somewhere, metric):
    cfg = evaluating(somewhere, metric)
    (somewhere / "results").mkdir()
    check_evaluator(cfg, "val")
    (somewhere / "results" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"results: \w+ removes this folder, and results/thesis.txt with it"):
        check_evaluator(cfg, "val", overwrite=True)
    (somewhere / "results" / "thesis.txt").unlink()
    cfg.work_dir = "results/work"
    with pytest.raises(UserError, match=r"results: \w+ removes this folder, and results/work with it"):
        check_evaluator(cfg, "val", overwrite=True)


@pytest.mark.parametrize("folder", ["data/maps", "data/images"])
def test_label_maps_stay_whatever_is_asked_for(somewhere, folder):
    metric = f"dict(type='IoUMetric', output_dir={folder!r})"
    write_config(somewhere / "config.py", SEGMENTOR, somewhere / "data", 1, f"\ntest_evaluator = {metric}\n")
    cfg = load_config("config.py", {"work_dir": "work"})
    with pytest.raises(UserError, match=f"{folder}: is read by this command"):
        check_evaluator(cfg, "test", overwrite=True)
