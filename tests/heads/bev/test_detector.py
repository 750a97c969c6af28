"""BEVDetector: training with history, streams in prediction, published checkpoints, and errors that name the field."""

import re

import bev_models
import numpy as np
import pytest
import torch
from mmengine.runner import load_checkpoint

from attnzoo.heads.bev.detector import BEVDetector

LIFTINGS = ("2d", "dfa3d")


def parameters(model: BEVDetector) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(("lifting", "mixed"), [("2d", False), ("dfa3d", False), ("dfa3d", True)])
def test_a_training_step_reaches_every_part(lifting, mixed):
    """In mixed precision too, where weights that history has used are not left behind."""
    model = bev_models.model(lifting)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        losses = model(bev_models.images(2, 2), [bev_models.sample(i, 2) for i in range(2)], mode="loss")
    expected = {"loss_cls", "loss_bbox", "d0.loss_cls", "d0.loss_bbox", "loss_bev_bce", "loss_bev_dice"}
    assert set(losses) == expected | ({"loss_depth"} if lifting == "dfa3d" else set())
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    for part in ("backbone", "neck", "bev_encoder", "detection_head", "segmentation_head", "depth_head"):
        module = getattr(model, part)
        assert module is None or sum(p.grad.abs().sum() for p in parameters(module)) > 0, part


def test_depth_learns_of_the_last_frame():
    model, images, sample = bev_models.model("dfa3d"), bev_models.images(1, 2), bev_models.sample(0, 2)
    want = model(images, [sample], mode="loss")["loss_depth"]
    for depth in (sample.gt_depth[1], sample.gt_depth * torch.tensor([0, 1])[:, None, None, None]):
        sample.gt_depth = depth
        torch.testing.assert_close(model(images, [sample], mode="loss")["loss_depth"], want)


def randomised(model: BEVDetector) -> BEVDetector:
    """Weights by which every input tells."""
    for module in (model.bev_encoder, model.detection_head):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_history_runs_without_gradients_and_in_evaluation_mode():
    model = randomised(bev_models.model())
    modes, grads = [], []

    def look(module, *_):
        modes.append(module.training)
        if module is model.bev_encoder:
            grads.append(torch.is_grad_enabled())

    for module in (model.neck, model.bev_encoder):
        module.register_forward_hook(look)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items() if k.endswith("num_batches_tracked")}
    model.detection_head.eval()
    model(bev_models.images(1, 3), [bev_models.sample(0, 3)], mode="loss")
    assert modes == [False, False, False, True, True] and grads == [False, False, True]
    assert model.training and not model.detection_head.training
    after = model.backbone.state_dict()
    assert all(after[key] == count + 1 for key, count in before.items())


@pytest.mark.parametrize("lifting", LIFTINGS)
def test_a_batch_of_clips_is_its_samples(lifting):
    """Of three frames, where one sample's scene begins at the last and another's at the second."""
    model = randomised(bev_models.model(lifting)).double().eval()
    images = bev_models.images(3, 3).double()
    flags = ([True] * 3, [True, True, False], [True, False, True])
    samples = [bev_models.sample(i, 3, has_previous=np.array(flag)) for i, flag in enumerate(flags)]
    with torch.no_grad():
        together = model(images, samples)
        for i in range(3):
            torch.testing.assert_close(model(images[i : i + 1], samples[i : i + 1])[0], together[i])
        # Without the frames before their predecessor.
        for i, first in ((1, 2), (2, 1)):
            cut = bev_models.sample(i, 3)
            cut.set_metainfo({key: cut.get(key)[first:] for key in ("lidar2img", "can_bus")})
            torch.testing.assert_close(model(images[i : i + 1, first:], [cut])[0], together[i])
        other = model(images, [bev_models.sample(i, 3) for i in range(3)])
    torch.testing.assert_close(other[0], together[0])
    assert not torch.allclose(other[1], together[1]) and not torch.allclose(other[2], together[2])


def stream(frames: list[tuple[str, str, str]]) -> list:
    """Samples of scenes, each a triple of scene, token and previous token, with images by the scene's and own name."""
    found = []
    for scene, token, previous in frames:
        seed = sum(map(ord, scene + token))
        found.append((bev_models.images(1, 1, seed), bev_models.sample(seed, 1, scene_token=scene, token=token,
                                                                       prev=previous)))  # fmt: skip
    return found


def maps(model: BEVDetector, frames: list, batch: int = 1) -> list[torch.Tensor]:
    found = []
    for start in range(0, len(frames), batch):
        part = frames[start : start + batch]
        found += model(torch.cat([images for images, _ in part]).double(), [s for _, s in part], mode="predict")
    return [sample.pred_bev_map.clone() for sample in found]


def test_a_stream_is_a_clip():
    """Also where a batch has several frames of a scene, or of several scenes."""
    model = randomised(bev_models.model()).double().eval()
    a, b = ([("a", "0", ""), ("a", "1", "0"), ("a", "2", "1")], [("b", "0", ""), ("b", "1", "0")])
    with torch.no_grad():
        want = []
        for scene in (a, b):
            frames = stream(scene)
            for last in range(1, len(frames) + 1):
                sample = bev_models.sample(0, last)
                parts = [sample for _, sample in frames[:last]]
                sample.set_metainfo(
                    {key: np.concatenate([part.get(key) for part in parts]) for key in ("lidar2img", "can_bus")}
                )
                bev = model(torch.stack([images[0, 0] for images, _ in frames[:last]])[None].double(), [sample])
                want.append(model.segmentation_head.predict(bev, model.bev_encoder.size)[0])
        for batch in (1, 2, 5):
            model.memory.clear()
            for found, one in zip(maps(model, stream(a + b), batch), want, strict=True):
                torch.testing.assert_close(found, one)
        model.memory.clear()
        mixed = [a[0], b[0], a[1], b[1], a[2]]
        for found, one in zip(maps(model, stream(mixed)), [want[i] for i in (0, 3, 1, 4, 2)], strict=True):
            torch.testing.assert_close(found, one)


def test_a_stream_begins_anew():
    """Where a frame was left out, at another scene, and after training."""
    model = randomised(bev_models.model()).double().eval()
    first, second, third = stream([("a", "0", ""), ("a", "1", "0"), ("a", "2", "1")])
    with torch.no_grad():
        _, with_history = maps(model, [first, second])
        model.memory.clear()
        (alone,) = maps(model, [second])
        (skipped,) = maps(model, [third])
        model.memory.clear()
        (fresh,) = maps(model, [third])
        assert not torch.allclose(with_history, alone) and not torch.allclose(skipped, fresh)
        model.memory.clear()
        _, jumped = maps(model, [first, third])
        torch.testing.assert_close(jumped, fresh)
        maps(model, [first])
        model.train().eval()
        torch.testing.assert_close(maps(model, [second])[0], alone)


def test_motion_counts_with_history_alone():
    model = randomised(bev_models.model()).double().eval()
    ((images, sample),) = stream([("a", "0", "")])
    still = sample.clone()
    can_bus = sample.can_bus.copy()
    can_bus[:, [0, 1, 2, -1]] = 0
    still.set_metainfo(dict(can_bus=can_bus))
    with torch.no_grad():
        torch.testing.assert_close(*maps(model, [(images, sample), (images, still)]))


def test_predictions():
    model = bev_models.model().eval()
    with torch.no_grad():
        samples = model(bev_models.images(2), [bev_models.sample(i) for i in range(2)], mode="predict")
    for sample in samples:
        found = sample.pred_instances_3d
        assert found.bboxes_3d.shape == (18, 9) and found.scores_3d.shape == found.labels_3d.shape == (18,)
        assert sample.pred_bev_map.shape == (2, bev_models.ROWS, bev_models.COLUMNS)
        assert sample.pred_bev_map.min() > 0 and sample.pred_bev_map.max() < 1


def test_true_depth_in_the_place_of_a_head():
    """It has no weights, and its points tell; the frames of history have points of their own."""
    depth = dict(type="attnzoo.PointDepth", bins=bev_models.BINS, strides=(16, 32))
    model = randomised(bev_models.model("dfa3d", depth_head=depth)).eval()
    assert not list(model.depth_head.parameters())
    images, sample = bev_models.images(1, 2), bev_models.sample(0, 2)
    assert "loss_depth" not in model(images, [sample], mode="loss")
    with torch.no_grad():
        found = model(images, [sample])
        for frame in range(2):
            other = sample.clone()
            other.gt_depth = sample.gt_depth.clone()
            other.gt_depth[frame] = 0
            assert not torch.equal(model(images, [other]), found)
    sample.gt_depth = sample.gt_depth[0]
    with pytest.raises(
        ValueError, match=r"sample 0: gt_depth must be \(frames, cameras, H, W\) of 2 frames, which Poin"
    ):
        model(images, [sample])


def published(model: BEVDetector) -> dict[str, torch.Tensor]:
    """The weights of a model by the names that BEVFormer's checkpoints have."""
    names = (
        (r"^backbone\.", "img_backbone."), (r"^neck\.", "img_neck."),
        (r"^bev_encoder\.(bev_embedding|positional_encoding)", r"pts_bbox_head.\1"),
        (r"^bev_encoder\.camera_embeddings", "pts_bbox_head.transformer.cams_embeds"),
        (r"^bev_encoder\.level_embeddings", "pts_bbox_head.transformer.level_embeds"),
        (r"^bev_encoder\.(encoder|can_bus_mlp)", r"pts_bbox_head.transformer.\1"),
        (r"^detection_head\.(decoder|reference_points)", r"pts_bbox_head.transformer.\1"),
        (r"^detection_head\.", "pts_bbox_head."), (r"\.temporal_attention\.", ".attentions.0."),
        (r"\.spatial_attention\.output_proj", ".attentions.1.output_proj"),
        (r"\.spatial_attention\.", ".attentions.1.deformable_attention."),
        (r"\.self_attention\.", ".attentions.0.attn."), (r"\.cross_attention\.", ".attentions.1."),
        (r"\.ffn\.", ".ffns.0."),
    )  # fmt: skip
    found = {}
    for key, value in model.state_dict().items():
        for pattern, new in names:
            key = re.sub(pattern, new, key)
        found[key] = value
    return found | {"pts_bbox_head.code_weights": torch.ones(10)}


@pytest.mark.parametrize("way", ["state dict", "runner", "init_cfg"])
def test_published_checkpoints_load_strictly(way, tmp_path):
    one = bev_models.model(segmentation_head=None)
    state, path = published(one), tmp_path / "bevformer_epoch_24.pth"
    assert all(key.startswith(("img_", "pts_bbox_head.")) for key in state)
    torch.save({"meta": {}, "state_dict": state}, path)
    if way == "init_cfg":
        other = bev_models.model(segmentation_head=None, init_cfg=dict(type="Pretrained", checkpoint=str(path)))
        other.init_weights()
    else:
        other = bev_models.model(segmentation_head=None)
        if way == "runner":
            load_checkpoint(other, str(path), strict=True)
        else:
            other.load_state_dict(state)
            assert "pts_bbox_head.code_weights" in state
    for (name, found), want in zip(other.state_dict().items(), one.state_dict().values(), strict=True):
        assert torch.equal(found, want), name
    other.load_state_dict(one.state_dict())


def test_a_checkpoint_of_another_map(tmp_path):
    one = bev_models.model(segmentation_head=None)
    cfg = bev_models.config(segmentation_head=None)
    cfg["bev_encoder"]["rows"] = 7
    torch.save({"state_dict": published(one)}, tmp_path / "other.pth")
    with pytest.raises(
        RuntimeError, match=r"(?s)other.pth: no checkpoint of this BEVDetector.*bev_embedding.weight.*20"
    ):
        BEVDetector(**cfg).load_checkpoint(tmp_path / "other.pth")


def changed(**metainfo):
    return bev_models.sample(0, 1, **metainfo)


def singular() -> np.ndarray:
    matrix = bev_models.lidar2img()
    matrix[1, 0] = matrix[1, 2] * 3
    return matrix


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            changed(lidar2img=np.eye(4)),
            r"sample 0: lidar2img must be \(frames=1, cameras=2, 4, 4\), got shape \(4, 4\)",
        ),
        (changed(lidar2img=bev_models.lidar2img(0, 1)), r"lidar2img must be \(frames=1, cameras=2, 4, 4\), got shape"),
        (changed(lidar2img=singular()), "sample 0: lidar2img of frame 0, camera 1 is singular"),
        (changed(lidar2img=bev_models.lidar2img() * np.nan), "lidar2img has numbers that are not finite"),
        (changed(can_bus=np.zeros(17), token="x"), r"sample x: can_bus must be \(frames=1, 18\), got shape \(17,\)"),
        (changed(has_previous=[True, False]), "has_previous must be of 1 frames, got 2"),
    ],
)
def test_bad_calibration(sample, message):
    with pytest.raises(ValueError, match=message):
        bev_models.model()(bev_models.images(1), [sample])


@pytest.mark.parametrize("field", ["lidar2img", "gt_instances_3d", "gt_bev_map", "gt_depth", "prev"])
def test_missing_fields(field):
    model, sample = bev_models.model("dfa3d"), bev_models.sample()
    delattr(sample, field)
    with pytest.raises(ValueError, match=f"sample 0: has no {field}"):
        model(bev_models.images(1), [sample], mode="predict" if field == "prev" else "loss")


def test_bad_input():
    model, sample = bev_models.model(), bev_models.sample()
    images = bev_models.images(1)
    for given, message in (
        ((images[0], [sample]), r"inputs must be \(B, frames, cameras=2, RGB=3, H, W\), got shape \(1, 2, 3, 32, 64\)"),
        ((images[:, :, :1], [sample]), r"inputs must be \(B, frames, cameras=2, RGB=3, H, W\)"),
        ((images, []), "data_samples has 0 samples, inputs 1"),
        ((images, [sample], "train"), "mode must be 'loss', 'predict' or 'tensor', got 'train'"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(detection_head=None, segmentation_head=None), "both None: one is needed"),
        (dict(lifting="dfa3d", depth_head=None), "lifting='dfa3d' needs a depth_head"),
        (dict(depth_head=dict(type="attnzoo.PointDepth")), "lifting='2d' takes no depth_head"),
        (dict(lifting="dfa3d", depth_head=dict(type="attnzoo.PointDepth")), "depth_head has bins from 2.0 to 58.0 m"),
    ],
)
def test_parts_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        bev_models.model(**options)
