"""The detection head with its decoder: against published figures, and its losses and predictions."""

import bev_goldens
import golden_files
import pytest
import torch
from mmengine.structures import InstanceData

import attnzoo.heads  # noqa: F401  installs mmcv's operators
from attnzoo.heads.bev.bev_encoder import BEVEncoder
from attnzoo.heads.bev.detection_head import BEVDetectionHead

SMALL = dict(
    num_classes=3, embed_dims=8, num_query=7, num_layers=2, num_heads=2, num_points=2, feedforward_channels=8,
    dropout=0.0,
)  # fmt: skip
SIZE = (4, 5)


def test_equals_the_published_head():
    golden = golden_files.load("bevformer_head")
    kwargs = golden["kwargs"]
    size = kwargs["bev_h"], kwargs["bev_w"]
    common = dict(
        embed_dims=kwargs["embed_dims"], num_heads=kwargs["num_heads"], point_range=kwargs["pc_range"],
        feedforward_channels=kwargs["feedforward_channels"],
    )  # fmt: skip
    encoder = BEVEncoder(
        rows=size[0], columns=size[1], num_layers=kwargs["encoder_layers"], num_levels=len(kwargs["feature_levels"]),
        num_points=kwargs["spatial_points"], num_pillar_points=kwargs["num_points_in_pillar"],
        num_temporal_points=kwargs["temporal_points"], rotate_center=kwargs["rotate_center"], **common,
    )  # fmt: skip
    head = BEVDetectionHead(
        num_classes=kwargs["num_classes"], num_query=kwargs["num_query"], num_layers=kwargs["decoder_layers"],
        num_points=kwargs["decoder_points"], num_fcs=kwargs["num_reg_fcs"], **common,
    )  # fmt: skip
    for module, name in ((encoder, "bev_encoder."), (head, "detection_head.")):
        module.double().eval().load_state_dict(bev_goldens.weights(golden, "pts_bbox_head.", name))
    assert sum(p.numel() for module in (encoder, head) for p in module.parameters()) == golden["params"]
    *levels, previous = bev_goldens.inputs(golden)
    can_bus = torch.tensor([kwargs["can_bus"]], dtype=torch.float64)
    given = levels, bev_goldens.cameras(golden), torch.tensor([kwargs["img_shape"]]), can_bus
    with torch.no_grad():
        for name, history in (("first_frame", None), ("with_history", previous)):
            bev = encoder(*given, history)
            logits, codes = head(bev, size)
            for output, found in (
                ("bev_embed", bev.transpose(0, 1)), ("all_cls_scores", logits), ("all_bbox_preds", codes)
            ):  # fmt: skip
                assert golden_files.error(found, golden["outputs"][f"{name}/{output}"]) < 1e-12, output


def head(**options) -> BEVDetectionHead:
    return BEVDetectionHead(**SMALL | options).double()


def target(count: int, seed: int = 0) -> InstanceData:
    boxes = golden_files.noise((count, 9), seed)
    boxes[:, 3:6] = boxes[:, 3:6].exp()
    return InstanceData(bboxes_3d=boxes, labels_3d=torch.arange(count) % 3)


def test_initial_scores_are_low():
    """By the bias of the last layer: most queries see nothing."""
    for branch in head().cls_branches:
        torch.testing.assert_close(branch[-1].bias.sigmoid(), torch.full((3,), 0.01, dtype=torch.float64))


def test_losses_of_every_layer():
    """In a batch with an empty scene, and with more boxes than queries."""
    module, bev = head(), golden_files.noise((3, 20, 8), 1)
    losses = module.loss(bev, SIZE, [target(2), target(0), target(9, 1)])
    assert sorted(losses) == ["d0.loss_bbox", "d0.loss_cls", "loss_bbox", "loss_cls"]
    assert all(loss.isfinite() and loss > 0 and loss.dim() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    # References learn by the first layer's place alone, whose branch does not reach them at first.
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_an_empty_scene_teaches_the_classes_alone():
    module, bev = head(), golden_files.noise((1, 20, 8), 1)
    losses = module.loss(bev, SIZE, [target(0)])
    assert losses["loss_bbox"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()


def test_a_batch_predicts_as_its_samples():
    module, bev = head(coder=dict(max_num=5)).eval(), golden_files.noise((3, 20, 8), 1)
    with torch.no_grad():
        together = module.predict(bev, SIZE)
        for i, found in enumerate(together):
            (want,) = module.predict(bev[i : i + 1], SIZE)
            assert len(found) == 5 and found.bboxes_3d.shape == (5, 9)
            for key in ("bboxes_3d", "scores_3d", "labels_3d"):
                torch.testing.assert_close(found[key], want[key])
            assert found.scores_3d.diff().max() <= 0 and found.labels_3d.max() < 3


def test_centers_stay_in_the_range():
    point_range = (-10.0, -20.0, -1.0, 30.0, 40.0, 2.0)
    module = head(point_range=point_range)
    for branch in module.reg_branches:
        torch.nn.init.normal_(branch[-1].weight, std=10)
    _, codes = module(golden_files.noise((2, 20, 8), 1), SIZE)
    centers = codes[..., [0, 1, 4]].flatten(0, -2)
    assert (centers >= torch.tensor(point_range[:3])).all() and (centers <= torch.tensor(point_range[3:])).all()
    assert (centers.amax(0) - centers.amin(0) > torch.tensor([20, 30, 1.5])).all()


def test_a_layer_does_not_learn_of_later_ones_by_its_boxes():
    module = head()
    _, codes = module(golden_files.noise((1, 20, 8), 1), SIZE)
    codes[-1].sum().backward()
    first, last = ([bool(p.grad.any()) for p in branch.parameters()] for branch in module.reg_branches)
    assert all(last) and not any(first)


def test_mixed_precision():
    """Matching and losses are in float32."""
    module, bev = head().float(), golden_files.noise((2, 20, 8), 1).float()
    targets = [target(2), target(1)]
    want = module.loss(bev, SIZE, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = module.loss(bev, SIZE, targets)
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, want[key], rtol=0.1, atol=0.02)
    assert module.bfloat16()(bev.bfloat16(), SIZE)[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_classes=0), "num_classes=0: must be 1 or more"),
        (dict(num_query=3.0), "num_query=3.0: must be a whole number"),
        (dict(coder=dict(maximum=3)), "coder: has no 'maximum'; allowed are center_range, max_num, score_threshold"),
        (dict(coder=dict(max_num=0)), "max_num=0: must be 1 or more"),
        (dict(coder=dict(score_threshold=2)), "score_threshold=2: must be from 0 to 1"),
        (dict(loss=dict(code_weights=(1, 2))), r"code_weights=\(1, 2\): must be 10 numbers, got 2"),
        (dict(loss=dict(gamma=-1)), "gamma=-1: must be 0 or more"),
        (dict(point_range=(0, 0, 0, 0, 1, 1)), "point_range"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        head(**arguments)


def test_bad_input():
    module, bev = head(), golden_files.noise((1, 20, 8), 1)
    wrong = target(2)
    wrong.labels_3d = torch.tensor([0, 3])
    flat, lost = target(2), target(2)
    flat.bboxes_3d[1, 4], lost.bboxes_3d[0, 1] = 0, torch.nan
    for given, message in (
        ((bev[:, 1:], SIZE, [target(1)]), r"bev must be \(B=1, Q=20, C=8\), got shape \(1, 19, 8\)"),
        ((bev, SIZE, [wrong]), r"targets\[0\].labels_3d=\[0, 3\]: must be from 0 to 2"),
        ((bev, SIZE, [target(1)] * 2), "targets of 2 samples, predictions of 1"),
        ((bev, SIZE, [flat]), r"targets\[0\].bboxes_3d must be finite, of sizes above 0, but for velocities, got \["),
        ((bev, SIZE, [lost]), r"targets\[0\].bboxes_3d must be finite, of sizes above 0, but for velocities, got \["),
        ((bev, SIZE, [InstanceData(bboxes_3d=torch.ones(1, 7), labels_3d=torch.zeros(1).long())]),
         r"targets\[0\].bboxes_3d must be \(n, box=9\), got shape \(1, 7\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            module.loss(*given)
