"""The traceable BEV detector gives what the model's own stream gives."""

import bev_models
import numpy as np
import pytest
import torch

from attnzoo.heads.bev.bev_encoder import BEVEncoder
from attnzoo.heads.deploy import UnsupportedModelError, deploy

# Sides that the preprocessor pads.
SIZE = (30, 57)


def lively(lifting: str = "2d", **options) -> torch.nn.Module:
    """A model whose results differ from place to place.

    Without gradients, as in the traceable form: PyTorch folds some matrix products by that, and rounds otherwise then.
    """
    torch.manual_seed(0)
    model = bev_models.model(lifting, **options).eval().requires_grad_(False)
    for part in (model.bev_encoder, model.detection_head):
        for parameter in () if part is None else part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def pictures(seed: int) -> torch.Tensor:
    """Of all cameras, (N, 3, H, W), 0 to 255."""
    return 255 * torch.rand(bev_models.CAMERAS, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def predict(model, images, samples):
    with torch.no_grad():
        return model.test_step(dict(inputs=list(images), data_samples=samples))


def call(model, images, samples, history, known):
    """Outputs of the traceable form by name, for the samples' calibration and motion."""
    wrapper = deploy(model)
    lidar2img, can_bus = (
        torch.from_numpy(np.stack([sample.get(name)[0] for sample in samples])).float()
        for name in ("lidar2img", "can_bus")
    )
    with torch.no_grad():
        outputs = wrapper(torch.stack(images), lidar2img, can_bus, history, torch.tensor(known))
    return dict(zip(wrapper.outputs, outputs, strict=True))


def check_equal(outputs, samples):
    for i, sample in enumerate(samples):
        expected = sample.pred_instances_3d
        count = len(expected)
        assert torch.equal(outputs["boxes"][i, :count], expected.bboxes_3d)
        assert torch.equal(outputs["scores"][i, :count], expected.scores_3d)
        assert torch.equal(outputs["labels"][i, :count], expected.labels_3d)
        assert (outputs["labels"][i, count:] == -1).all() and (outputs["scores"][i, count:] == 0).all()
        assert torch.equal(outputs["bev_map"][i], sample.pred_bev_map)


@pytest.mark.parametrize("lifting", ["2d", "dfa3d"])
def test_without_history_it_is_predict_and_with_it_the_stream(lifting):
    model = lively(lifting)
    cells = bev_models.ROWS * bev_models.COLUMNS
    images = [pictures(seed) for seed in range(2)]
    samples = [bev_models.sample(seed) for seed in range(2)]
    # Where there is no history its numbers do not count, whatever they are.
    first = call(model, images, samples, torch.full((2, cells, bev_models.DIMS), torch.nan), [False, False])
    check_equal(first, predict(model, images, samples))

    images = [pictures(seed) for seed in range(2, 4)]
    samples = [
        bev_models.sample(2, scene_token="scene 0", token="1", prev="0"),
        bev_models.sample(3, scene_token="scene 3", token="1"),
    ]
    second = call(model, images, samples, first["next_history"], [True, False])
    check_equal(second, predict(model, images, samples))
    again = call(model, images, samples, first["next_history"], [False, False])
    different = [not torch.equal(again["bev_map"][i], second["bev_map"][i]) for i in range(2)]
    assert different == [True, False]


def test_boxes_outside_of_the_range_of_centres_are_empty_places_at_the_end():
    head = bev_models.config()["detection_head"]
    coder = dict(center_range=(-8.0, -16.0, -5.0, 8.0, 16.0, 3.0), max_num=12)
    model = lively(detection_head=head | dict(coder=coder))
    images, samples = [pictures(0)], [bev_models.sample(0)]
    history = torch.zeros(1, bev_models.ROWS * bev_models.COLUMNS, bev_models.DIMS)
    outputs = call(model, images, samples, history, [False])
    found = predict(model, images, samples)
    check_equal(outputs, found)
    assert outputs["boxes"].shape == (1, 12, 9)
    count = len(found[0].pred_instances_3d)
    assert 0 < count < 12 and (outputs["boxes"][0, count:] == 0).all()
    assert (outputs["scores"].diff() <= 0).all()


@pytest.mark.parametrize(
    ("without", "outputs"),
    [
        ("detection_head", ("bev_map", "next_history")),
        ("segmentation_head", ("boxes", "scores", "labels", "next_history")),
    ],
)
def test_a_head_that_is_not_there_has_no_output(without, outputs):
    model = lively(**{without: None})
    history = torch.zeros(1, bev_models.ROWS * bev_models.COLUMNS, bev_models.DIMS)
    found = call(model, [pictures(0)], [bev_models.sample(0)], history, [False])
    assert tuple(found) == outputs and tuple(deploy(model).metadata()["meaning"])[5:] == outputs


def test_parts_without_a_traceable_form_are_named():
    points = dict(type="attnzoo.PointDepth", bins=bev_models.BINS, strides=(16, 32))
    with pytest.raises(UnsupportedModelError, match="depth head PointDepth has no traceable form; allowed: BEVDepth"):
        deploy(lively("dfa3d", depth_head=points))

    class OwnEncoder(BEVEncoder):
        def forward(self, *args):
            return super().forward(*args)

    model = lively()
    model.bev_encoder.__class__ = OwnEncoder
    with pytest.raises(UnsupportedModelError, match="BEV encoder OwnEncoder has no traceable form; allowed: BEVEncod"):
        deploy(model)
