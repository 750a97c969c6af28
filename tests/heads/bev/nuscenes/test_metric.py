"""The metric takes what models predict, alone and in several processes."""

import json
import multiprocessing
import os

import golden_files
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from attnzoo.heads.bev.nuscenes.boxes import annotated_boxes
from attnzoo.heads.bev.nuscenes.calibration import rigid_inverse, sensor_to_global
from attnzoo.heads.bev.nuscenes.classes import CLASSES
from attnzoo.heads.bev.nuscenes.evaluation import evaluate
from attnzoo.heads.bev.nuscenes.metric import NuScenesMetric
from attnzoo.heads.bev.nuscenes.submission import read_submission
from attnzoo.heads.mm.registry import METRICS

SCENES = golden_files.load("nuscenes_eval")["kwargs"]["scenes"]


def metric(nusc, split=SCENES, **kwargs) -> NuScenesMetric:
    return NuScenesMetric(str(nusc.dataroot), nusc.folder.name, split, **kwargs)


def predictions(nusc, score=0.5, classes=CLASSES, split=SCENES) -> list[dict]:
    """All annotations, in the LiDAR's frame, as a model would predict them: what the Evaluator hands on."""
    samples = []
    for sample in nusc.samples(split):
        rows = nusc.annotations(int(sample))
        labels = nusc.annotation_labels(rows, classes)
        lidar = sensor_to_global(nusc, nusc.key_frames(int(sample), "LIDAR_TOP"))
        boxes = annotated_boxes(nusc, rows[labels >= 0]).moved(rigid_inverse(lidar)).rows()
        found = InstanceData(
            bboxes_3d=torch.from_numpy(boxes).float(),
            labels_3d=torch.from_numpy(labels[labels >= 0]),
            scores_3d=torch.full((len(boxes),), score),
        )
        token = nusc.table("sample").token(int(sample))
        samples.append(BaseDataElement(metainfo={"token": token}, pred_instances_3d=found).to_dict())
    return samples


def test_true_boxes_as_predictions(nusc, tmp_path):
    """The file's boxes are those of the annotations, and the scores those of the file."""
    built = METRICS.build(
        dict(
            type="attnzoo.NuScenesMetric",
            data_root=str(nusc.dataroot),
            version=nusc.folder.name,
            split=SCENES,
            out_dir=str(tmp_path / "out"),
        )
    )
    built.process(None, predictions(nusc))
    scores = built.evaluate(7)
    submission = read_submission(tmp_path / "out" / "results_nusc.json")
    assert submission.meta["use_camera"] and not submission.meta["use_lidar"]
    result = evaluate(nusc, submission, nusc.samples(SCENES))
    assert scores["NDS"] == pytest.approx(result.nd_score) and scores["mAP"] == pytest.approx(result.mean_ap)
    assert scores["mAP"] > 0.5 and scores["mATE"] < 1e-3 and scores["mASE"] < 1e-5 and scores["mAOE"] < 1e-2
    assert scores["car_AP"] == pytest.approx(
        np.mean([scores[f"car_AP_dist_{limit}"] for limit in (0.5, 1.0, 2.0, 4.0)])
    )
    assert "barrier_orient_err" in scores and "barrier_vel_err" not in scores
    assert all(isinstance(value, float) for value in scores.values())
    boxes = annotated_boxes(nusc, np.sort(result.kept_objects))
    place = np.argmin(np.linalg.norm(submission.boxes.translations[:, None] - boxes.centers[None], axis=-1), axis=0)
    np.testing.assert_allclose(submission.boxes.translations[place], boxes.centers, atol=1e-4)
    np.testing.assert_allclose(submission.boxes.sizes[place], boxes.sizes, atol=1e-5)
    np.testing.assert_allclose(submission.boxes.velocities[place], boxes.velocities[:, :2], atol=0.05)


def test_attributes_by_class_and_speed(nusc, tmp_path):
    built = metric(nusc, ["scene-0102"], out_dir=str(tmp_path), format_only=True)
    samples = predictions(nusc, split=["scene-0102"])
    rows = torch.zeros(3 * len(CLASSES), 9)
    rows[:, 3:6] = 1
    rows[:, 7] = torch.tensor([0.19, 0.21, float("nan")]).repeat(len(CLASSES))
    labels = torch.arange(len(CLASSES)).repeat_interleave(3)
    samples[0]["pred_instances_3d"] = dict(bboxes_3d=rows, labels_3d=labels, scores_3d=torch.rand(len(rows)))
    built.process(None, samples)
    assert built.evaluate(3) == {}
    content = json.loads((tmp_path / "results_nusc.json").read_text())
    found = {}
    for box in content["results"][samples[0]["token"]]:
        slow = not np.linalg.norm(box["velocity"]) > 0.2
        found.setdefault(box["detection_name"], {}).setdefault(slow, set()).add(box["attribute_name"])
    parked = {True: {"vehicle.parked"}, False: {"vehicle.moving"}}
    cycle = {True: {"cycle.without_rider"}, False: {"cycle.with_rider"}}
    none = {True: {""}, False: {""}}
    assert found == {
        **dict.fromkeys(("car", "truck", "trailer", "construction_vehicle"), parked),
        "bus": {True: {"vehicle.stopped"}, False: {"vehicle.moving"}},
        **dict.fromkeys(("bicycle", "motorcycle"), cycle),
        "pedestrian": {True: {"pedestrian.standing"}, False: {"pedestrian.moving"}},
        **dict.fromkeys(("barrier", "traffic_cone"), none),
    }


def test_other_classes_and_many_boxes(nusc, tmp_path):
    """Labels are indices in the model's own classes; the 500 best of a sample are taken."""
    classes = ("pedestrian", "car")
    built = metric(nusc, classes=classes, out_dir=str(tmp_path))
    samples = predictions(nusc, classes=classes)
    many = {
        name: values.repeat(600, *[1] * (values.ndim - 1))[:600]
        for name, values in samples[0]["pred_instances_3d"].items()
    }
    many["scores_3d"] = torch.linspace(0, 1, 600)
    samples[0]["pred_instances_3d"] = many
    built.process(None, samples)
    scores = built.evaluate(7)
    # The copies are wrong, which leaves little of the precision.
    assert min(scores["car_AP"], scores["pedestrian_AP"]) > 0.05 and scores["bus_AP"] == 0
    submission = read_submission(tmp_path / "results_nusc.json")
    best = submission.boxes.scores[submission.boxes.samples == submission.tokens.index(samples[0]["token"])]
    np.testing.assert_allclose(best, np.linspace(0, 1, 600)[:99:-1], atol=1e-6)


def test_nothing_found(nusc):
    """As a model in its first epoch may have it."""
    built = metric(nusc)
    samples = predictions(nusc)
    for sample in samples:
        sample["pred_instances_3d"] = {name: values[:0] for name, values in sample["pred_instances_3d"].items()}
    built.process(None, samples)
    scores = built.evaluate(7)
    assert scores["mAP"] == scores["NDS"] == 0 and scores["mATE"] == 1


def _worker(rank: int, store: str, nusc, queue) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    built = metric(nusc)
    samples = predictions(nusc)
    # The first has five samples, the second three, one of them again.
    built.process(None, samples[:5] if rank == 0 else samples[4:])
    queue.put((rank, built.evaluate(7)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_two_processes(nusc, tmp_path):
    """With different numbers of samples."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path / "store"), nusc, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    scores = dict(queue.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    alone = metric(nusc)
    alone.process(None, predictions(nusc))
    assert scores[0] == scores[1] == alone.evaluate(7)


def test_what_is_refused(nusc):
    samples = predictions(nusc)
    built = metric(nusc)
    built.process(None, samples[:-1])
    with pytest.raises(
        ValueError, match=r"1 of the 7 samples of the split \['scene-0101', 'scene-0102'\] have no pred"
    ):
        built.evaluate(7)
    with pytest.raises(ValueError, match="format_only=True: out_dir must name the folder"):
        metric(nusc, format_only=True)
    with pytest.raises(ValueError, match=r"classes\[1\]='tram': allowed are 'car'"):
        metric(nusc, classes=("car", "tram"))
    token = samples[0]["token"]
    for name, value, message in (
        ("bboxes_3d", torch.nan, "has boxes or scores that are not finite"),
        ("scores_3d", torch.inf, "has boxes or scores that are not finite"),
        ("labels_3d", 10, r"labels_3d must be from 0 to 9, got \["),
    ):
        sample = dict(samples[0], pred_instances_3d=dict(samples[0]["pred_instances_3d"]))
        sample["pred_instances_3d"][name] = sample["pred_instances_3d"][name].clone()
        sample["pred_instances_3d"][name][0] = value
        with pytest.raises(ValueError, match=f"sample {token}: (pred_instances_3d )?{message}"):
            metric(nusc).process(None, [sample])
    sample["token"] = "x"
    sample["pred_instances_3d"] = samples[0]["pred_instances_3d"]
    with pytest.raises(ValueError, match=r"sample\.json: there is no row with the token 'x'"):
        metric(nusc).process(None, [sample])
