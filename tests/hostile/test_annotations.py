"""COCO files drawn to be wrong: one refusal that names the entry, or a file that pycocotools and mmdet read whole."""

import contextlib
import copy
import io
import json
import random
import time
from pathlib import Path

import numpy as np
from campaign import campaign
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.data.coco import CocoNeeds, check_coco
from attnzoo.tools.data.coco_files import _parsed

CLASSES = ("red", "green", "blue")
EXTREMES = [
    0, 1, -1, 2, 0.5, -0.5, 1e308, -1e308, 1e38, 1e-320, 2**31, 2**31 - 1, -(2**31), 2**32, 2**53, 2**63, 2**64, 2**200,
    10**400, float("nan"), float("inf"), -float("inf"), True, False, None, "", "1", "a", "é" * 300, "\ud800", "\0",
    "../x", "/x", [], {}, [[]], [1], {"a": 1}, [[[[]]]], "0" * 5000, 640, 480, 100, 99.5, -20,
]  # fmt: skip


def run_lengths(rng: random.Random, height: int, width: int) -> dict:
    pixels = np.zeros((height, width), np.uint8, order="F")
    for _ in range(rng.randrange(4)):
        top, left = rng.randrange(height), rng.randrange(width)
        pixels[top : top + rng.randrange(1, height + 1), left : left + rng.randrange(1, width + 1)] = 1
    code = masks.encode(pixels)
    if rng.random() < 0.5:
        return {"size": [height, width], "counts": code["counts"].decode()}
    flat = pixels.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return {"size": [height, width], "counts": [0, *counts] if flat[0] else counts}


def good_file(rng: random.Random) -> dict:
    """What detectors are trained on: gaps in ids, empty images, boxes that stick out or have no area, crowds."""
    text = rng.random() < 0.2
    images, annotations = [], []
    for index in range(rng.randrange(1, 5)):
        number = f"image {index}" if text else rng.choice([index, 7 * index, 10**12 + index])
        width, height = rng.randrange(1, 90), rng.randrange(1, 90)
        images.append({"id": number, "file_name": f"a/{index}.jpg", "width": width, "height": height, "license": 3})
        for _ in range(rng.randrange(4)):
            x, y = rng.uniform(-3, width), rng.uniform(-3, height)
            box = [x, y, rng.uniform(max(-x, 0), width + 3 - x), rng.uniform(max(-y, 0), height + 3 - y)]
            if rng.random() < 0.2:
                box[0], box[2] = max(x, 0), 0
            kind = rng.randrange(3)
            corners = [x, y, x + box[2], y, x + box[2], y + box[3], x, y + box[3]]
            mask = [corners] * rng.choice([1, 1, 2]) if kind else run_lengths(rng, height, width)
            annotations.append({
                "id": 3 * len(annotations), "image_id": number, "category_id": rng.choice([1, 5, 90]), "bbox": box,
                "area": box[2] * box[3], "iscrowd": 0 if kind else 1, "segmentation": mask, "score": None,
            })  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in zip((1, 5, 90), CLASSES, strict=True)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def places(value, path=()):
    """The paths to all values, the whole among them, as deep as a file of COCO goes."""
    yield path
    if len(path) == 6:
        return
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield from places(part, (*path, key))


def mutate(rng: random.Random, content: dict) -> dict:
    path = rng.choice(list(places(content))[1:])
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    key, value = path[-1], parent[path[-1]]
    how = rng.randrange(9)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(value, list):
        value.insert(rng.randrange(len(value) + 1), copy.deepcopy(rng.choice(value or EXTREMES)))
    elif how == 2 and isinstance(value, dict):
        value[rng.choice(["id", "size", "counts", "ignore", "iscrowd", "bbox", "width", "x"])] = rng.choice(EXTREMES)
    elif how == 3 and isinstance(value, (int, float)):
        parent[key] = value * rng.choice([-1, 1e3, 1e9, 1e300, 2**31, 0.1, 1.0001]) + rng.choice([0, 1, -1, 100])
    elif how == 4 and isinstance(value, str) and value:
        at = rng.randrange(len(value))
        other = chr(rng.choice([48, 63, 64, 79, 80, 95, 111, 112, 47, 127, 200, rng.randrange(48, 112)]))
        parent[key] = value[:at] + rng.choice([other, "", other * 30]) + value[at + 1 :]
    elif how == 5:
        nested = []
        for _ in range(rng.choice([5, 200, 900])):
            nested = [nested]
        parent[key] = nested
    elif how == 6:
        parent[key] = {"size": [rng.choice(EXTREMES), rng.choice(EXTREMES)], "counts": rng.choice(["0", "P" * 9, [1]])}
    elif how == 7 and isinstance(value, list):
        parent[key] = value[: rng.randrange(len(value) + 1)]
    else:
        parent[key] = copy.deepcopy(rng.choice(EXTREMES))
    return content


def targeted(rng: random.Random, content: dict) -> None:
    """Lies that are worth more draws than chance would give them."""
    if not content["annotations"]:
        return
    entry = rng.choice(content["annotations"])
    other = rng.choice(content["annotations"])
    how = rng.randrange(11)
    if how == 0:
        entry["segmentation"] = {"size": [2**31, 2**31], "counts": rng.choice(["abc", [2**62], [2**31, 5], "0" * 40])}
    elif how == 1:
        entry["segmentation"] = [[0, 0, rng.choice([2**200, 2.0**200, 1e9, 2**31]), 1, 5, rng.choice([5, -1e12])]]
    elif how == 2:
        entry["id"] = other["id"]
    elif how == 3:
        part = content[rng.choice(["images", "categories"])]
        part.append(copy.deepcopy(rng.choice(part)))
    elif how == 4:
        entry["bbox"][rng.randrange(4)] = rng.choice([1e308, -1e308, 1e5, -50, float("nan"), 10**400])
    elif how == 5:
        rng.choice(content["images"])["file_name"] = rng.choice(["/etc/passwd", "../../x", "a/../../x", "C:\\x", "~/x"])
    elif how == 6 and isinstance(entry["segmentation"], dict):
        counts = entry["segmentation"]["counts"]
        if isinstance(counts, str):
            letters = [chr(rng.randrange(48, 112)) for _ in range(rng.randrange(1, 30))]
            entry["segmentation"]["counts"] = rng.choice([counts[:-1], counts * 2, "".join(letters), ""])
        else:
            counts[rng.randrange(len(counts))] += rng.choice([1, -1, 2**31, 2**32, -(2**33)])
    elif how == 7:
        # What mmdet leaves out by itself.
        box = rng.choice([[-500, 3, 4, 5], [5e14, 0, 1e15, 1], [9, 9, -4, 3], [1, 1, 0.4, 2], [-1e15, 0, 1e15, 9]])
        key, value = rng.choice([("bbox", box), ("area", -1), ("area", 0), ("image_id", "gone"), ("image_id", 77)])
        entry[key] = value
        if rng.random() < 0.5:
            entry["segmentation"] = rng.choice([None, [], "x", entry["segmentation"]])
    elif how == 8:
        if isinstance(entry["segmentation"], list):
            odd = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [], [1, "a"], "text", 7, None]
            entry["segmentation"].insert(rng.randrange(2), rng.choice(odd))
        rng.choice(content["images"])["width"] = rng.choice([64.0, 5.5, 2.0**40])
    elif how == 9:
        nested: list = []
        for _ in range(rng.choice([40, 200, 900])):
            nested = [nested]
        rng.choice([content["info"], rng.choice(content["categories"]), entry])["x"] = nested
    else:
        rng.shuffle(content["categories"])


def reads(path: Path, content: dict, reader: str) -> None:
    """Let pycocotools index the file, decode its masks and compare, and let mmdet make its entries and their masks."""
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        assert len(coco.imgs) == len(content["images"])
        assert len(coco.anns) == len(content["annotations"])
        if reader == "metric":
            compares(coco)
            return
        options = dict(metainfo={"classes": CLASSES}, data_prefix={"img": "a"}, test_mode=True, serialize_data=False)
        data = CocoDataset(ann_file=str(path), **options)
    assert len(coco.imgs) == len(data)
    if reader == "other":
        for entry in coco.anns.values():
            if entry.get("segmentation"):
                image = coco.imgs[entry["image_id"]]
                mask = coco.annToMask(entry)
                assert mask.shape == (image["height"], image["width"]) and mask.max(initial=0) <= 1
    load = LoadAnnotations(with_bbox=True, with_mask=True)
    for index in range(len(data)):
        info = data.get_data_info(index)
        for instance in info["instances"]:
            assert np.isfinite(np.array(instance["bbox"], np.float32)).all()
            assert 0 <= instance["bbox_label"] < len(CLASSES) and "mask" in instance
        size = info["height"], info["width"]
        found = load({**info, "ori_shape": size, "img_shape": size})
        assert found["gt_masks"].masks.shape == (len(info["instances"]), *size)


def compares(coco: COCO) -> None:
    """Compare one prediction with the file, by boxes and by masks."""
    if not coco.imgs or not coco.cats:
        return
    image = next(iter(coco.imgs.values()))
    mask = masks.encode(np.ones((image["height"], image["width"]), np.uint8, order="F"))
    one = {"image_id": image["id"], "category_id": next(iter(coco.cats)), "score": 0.5}
    for kind, more in (("bbox", {"bbox": [0, 0, 1, 1]}), ("segm", {"segmentation": mask})):
        evaluation = COCOeval(coco, coco.loadRes([{**one, **more}]), kind)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        assert all(np.isfinite(np.array(found)).all() for found in evaluation.ious.values())


def draw_content(rng: random.Random) -> dict:
    content = good_file(rng)
    for _ in range(rng.choice([1, 1, 2, 5])):
        # What is no longer a file of COCO at all has been changed enough.
        with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError, OverflowError, RecursionError):
            (targeted if rng.random() < 0.4 else mutate)(rng, content)
    return content


def draw_text(rng: random.Random, content: dict) -> str:
    text = json.dumps(content)
    if rng.random() < 0.9:
        return text
    at = rng.randrange(len(text))
    return rng.choice([text[:at], text[:at] + rng.choice('[{]}:,"0\\') + text[at:], "[" * 100_000, "", "[]", "3"])


def test_drawn_files(tmp_path):
    def draw(seed: int) -> str:
        rng = random.Random(seed)
        whole = rng.random() < 0.1
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps(good_file(rng)) if whole else draw_text(rng, draw_content(rng)), encoding="utf-8")
        reader = rng.choice(["data set", "metric", "other"])
        needs = CocoNeeds(reader=reader, classes=CLASSES, ordered=True, masks=True, evaluated=reader != "data set")
        try:
            found = _parsed("ann_file", path)
            names, told = check_coco("ann_file", path, found, needs)
        except UserError as error:
            assert not whole, error
            assert str(path) in str(error) and len(str(error)) < 1000 and "\n" not in str(error)
            return "refused"
        assert told is None or (reader != "other" and len(told) < 1000 and "\n" not in told)
        assert len(names) == len(found["images"])
        assert not any(name.startswith("/") or ".." in name.split("/") for name in names)
        if all(image["width"] * image["height"] <= 2**24 for image in found["images"]):
            reads(path, found, reader)
        return "a good file, accepted" if whole else "accepted, and read whole"

    campaign("COCO files", draw, 2000, seconds=60)


def test_codes_are_read_as_pycocotools_reads_them():
    """The check of compressed masks against the library, on honest ones and on ones with a run changed."""
    from attnzoo.tools.data.outlines import first_bad_code

    rng = random.Random(0)
    honest = []
    for index in range(100):
        height, width = rng.choice([(1, 1), (1, 70), (64, 3), (200, 150), (300, 200)])
        pixels = np.asfortranarray(np.random.default_rng(index).random((height, width)) < rng.choice([0, 0.01, 0.5, 1]))
        honest.append((index, masks.encode(pixels.astype(np.uint8))["counts"], height * width))
    assert first_bad_code(honest) is None
    for index, code, pixels in honest:
        assert first_bad_code([(index, code, pixels + 1)]) == index
        assert first_bad_code([(index, code + b"P", pixels)]) == index  # a number that does not end
        assert first_bad_code([(index, code + b"1", pixels)]) == index
    broken = honest.copy()
    broken[41] = (41, honest[41][1], 3)
    assert first_bad_code(broken) == 41


def test_a_file_of_the_size_of_coco_is_checked_in_seconds():
    """860,000 annotations take a hundred times as long as these."""
    rng = random.Random(0)
    images = [{"id": 3 * i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(1200)]
    annotations = []
    for index in range(8600):
        polygon = [rng.uniform(0, 480) for _ in range(2 * rng.randrange(10, 40))]
        annotations.append({
            "id": index, "image_id": 3 * (index % 1200), "category_id": 1, "bbox": [1.5, 2.5, 300.0, 200.0],
            "area": 3000.5, "iscrowd": 0, "segmentation": [polygon],
        })  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "red"}]}
    started = time.process_time()
    check_coco("x", Path("x"), content, CocoNeeds(classes=("red",), masks=True))
    assert time.process_time() - started < 0.5
