"""Random objects and predictions, as the golden evaluation's timing draws them.

As a program: time the metric on as many samples as nuScenes' validation set has.
"""

import argparse
import time

import golden_files
import numpy as np

from attnzoo.heads.bev.nuscenes.classes import ATTRIBUTES, EVALUATION_CLASSES
from attnzoo.heads.bev.nuscenes.curves import DetectionConfig, detection_curves
from attnzoo.heads.bev.nuscenes.evaluation import DetectionResult
from attnzoo.heads.bev.nuscenes.rotations import from_yaw
from attnzoo.heads.bev.nuscenes.submission import Detections

OBJECTS, COPIES, FREE = 30, 60, 140


def draw(samples: int, timing: dict) -> tuple[Detections, Detections]:
    """Predictions and objects of samples by the rule in the golden file's notes."""
    generator = np.random.default_rng(7)
    names = list(timing["class_sizes"])
    frequencies = [timing["class_frequencies"][name] for name in names]
    sizes = np.array([timing["class_sizes"][name] for name in names])

    def classes(count):
        return generator.choice(len(names), size=(samples, count), p=frequencies)

    def uniform(low, high, *shape):
        return generator.uniform(low, high, (samples, *shape))

    def normal(scale, *shape):
        return generator.normal(0, scale, (samples, *shape))

    label, place = classes(OBJECTS), uniform(-50, 50, OBJECTS, 2)
    yaw, velocity = uniform(-np.pi, np.pi, OBJECTS), normal(3, OBJECTS, 2)
    copied = np.tile(np.arange(OBJECTS), 2)

    def predicted(values, noise, free):
        return np.concatenate([values[:, copied] + noise, free], axis=1)

    labels = predicted(label, 0, classes(FREE))
    places = predicted(place, normal(1, COPIES, 2), uniform(-50, 50, FREE, 2))
    yaws = predicted(yaw, normal(0.3, COPIES), uniform(-np.pi, np.pi, FREE))
    velocities = predicted(velocity, normal(1, COPIES, 2), normal(3, FREE, 2))
    factors = np.exp(normal(0.1, COPIES + FREE, 3))
    scores = uniform(0, 1, COPIES + FREE)
    predictions = _detections(names, labels, places, yaws, velocities, sizes[labels] * factors, scores)
    objects = _detections(names, label, place, yaw, velocity, sizes[label], np.full(label.shape, -1.0))
    return predictions, objects


def _detections(names, labels, places, yaws, velocities, sizes, scores) -> Detections:
    samples, count = labels.shape
    attribute = {"pedestrian": "pedestrian.moving", "bicycle": "cycle.with_rider", "motorcycle": "cycle.with_rider"}
    attribute |= dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), "vehicle.moving")
    attributes = np.array([ATTRIBUTES.index(attribute[name]) if name in attribute else -1 for name in names])
    order = np.array([EVALUATION_CLASSES.index(name) for name in names])
    return Detections(
        samples=np.repeat(np.arange(samples), count),
        translations=np.pad(places, ((0, 0), (0, 0), (0, 1))).reshape(-1, 3),
        sizes=sizes.reshape(-1, 3),
        rotations=from_yaw(yaws).reshape(-1, 4),
        velocities=velocities.reshape(-1, 2),
        labels=order[labels].ravel(),
        scores=scores.ravel(),
        attributes=attributes[labels].ravel(),
        points=np.full(labels.size, -1),
    )


def scored(predictions: Detections, objects: Detections) -> DetectionResult:
    """The metric without the filter."""
    curves = detection_curves(predictions, objects, DetectionConfig())
    return DetectionResult(DetectionConfig(), curves, np.arange(len(predictions)), np.arange(len(objects)), {})


def main() -> None:
    """Print the CPU seconds and the scores beside the devkit's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=6019)
    golden = golden_files.load("nuscenes_eval")["timing"]
    boxes = draw(parser.parse_args().samples, golden)
    start = time.process_time()
    result = scored(*boxes)
    print(f"{time.process_time() - start:.2f} CPU seconds; the devkit took {golden['cpu_seconds_accumulate']:.0f}")
    print(f"mAP {result.mean_ap}, NDS {result.nd_score}")
    print(f"the devkit's mAP {golden['outputs']['mean_ap']}, NDS {golden['outputs']['nd_score']}")


if __name__ == "__main__":
    main()
