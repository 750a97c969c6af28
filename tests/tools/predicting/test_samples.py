"""What is predicted in an image, drawn and written."""

import numpy as np
import pytest
from PIL import Image
from pycocotools.mask import decode

from attnzoo.tools.data.drawing import default_palette
from attnzoo.tools.predicting.samples import drawn, write_map


def test_masks_are_drawn_and_written():
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    masks = torch.zeros(2, 50, 70, dtype=torch.bool)
    masks[0, 30:45, 40:60] = True
    boxes = torch.tensor([[40.0, 30, 60, 45], [0, 0, 9, 9]])
    found = InstanceData(bboxes=boxes, scores=torch.tensor([0.9, 0.1]), labels=torch.tensor([1, 0]), masks=masks)
    sample = DetDataSample(pred_instances=found)
    image = np.full((50, 70, 3), 100, np.uint8)
    picture, entry = drawn(image, sample, ["a", "b"], default_palette(2), 0.5)
    (instance,) = entry["instances"]
    assert (instance["name"], instance["box"]) == ("b", [40, 30, 60, 45])
    assert np.array_equal(decode(instance["mask"]), masks[0].numpy())
    assert (picture[43, 58] != image[43, 58]).any()
    assert (picture[5, 5] == image[5, 5]).all()


def test_panoptic_maps_are_drawn_by_class():
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import PixelData

    ids = torch.zeros(1, 40, 40, dtype=torch.long)
    ids[0, 20:] = 1 + 1000 * 3
    sample = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=ids))
    _, entry = drawn(np.zeros((40, 40, 3), np.uint8), sample, ["a", "b"], default_palette(2), 0.5)
    assert entry["fractions"] == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(("classes", "top", "kind"), [(256, 255, np.uint8), (257, 0, np.int32), (300, 299, np.int32)])
def test_maps_of_more_than_256_classes_have_16_bits(tmp_path, classes, top, kind):
    labels = np.arange(12).reshape(3, 4) * 0 + np.array([0, 1, 2, top])
    write_map(tmp_path / "x.png", labels, classes)
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == ("L" if kind is np.uint8 else "I;16")
        assert np.array_equal(np.asarray(image), labels)
