"""A training step and a prediction of a detector or segmentor, on images of noise."""

import math
from collections.abc import Collection

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

CLASSES = 3


def detection_data(sizes: list[tuple[int, int]], with_mask: bool) -> dict:
    shapes = [(3, *size) for size in sizes]
    data = demo_mm_inputs(len(sizes), shapes, num_items=[3] * len(sizes), num_classes=CLASSES, with_mask=with_mask)
    for sample in data["data_samples"]:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    return data


def segmentation_data(sizes: list[tuple[int, int]]) -> dict:
    generator = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for size in sizes:
        inputs.append(torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8))
        truth = torch.randint(CLASSES, (1, *size), generator=generator)
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0), flip=False)
        samples.append(SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=truth)))
    return dict(inputs=inputs, data_samples=samples)


def check_training_step(model: BaseModel, data: dict, idle: Collection[str] = ()) -> None:
    """One step with a finite loss, in which every parameter of the backbone but the `idle` ones has a gradient."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = model(**model.data_preprocessor(data, True), mode="loss")
    loss, _ = model.parse_losses(losses)
    assert math.isfinite(loss.item())
    loss.backward()
    trained = {name: p for name, p in model.backbone.model.named_parameters() if p.requires_grad}
    assert trained
    gradients = {name: p.grad for name, p in trained.items()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    weights = [name for name, grad in gradients.items() if grad.ndim > 1 and name not in idle]
    assert [name for name in weights if not gradients[name].any()] == []
    before = [p.detach().clone() for p in model.backbone.parameters()]
    optimizer.step()
    assert any(not torch.equal(p, q) for p, q in zip(before, model.backbone.parameters(), strict=True))


def predict(model: BaseModel, data: dict) -> list:
    model.eval()
    with torch.no_grad():
        return model.test_step(data)
