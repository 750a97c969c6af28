"""Losses, predictions and checkpoints of restoration models, and weights taken over from another scale."""

import golden_files
import pytest
import timm
import torch
from mmengine.structures import BaseDataElement

from attnzoo.heads import Restorer

SIZES = dict(depths=(1,), num_heads=(2,), embed_dim=8, window_size=8, compress_ratio=2, squeeze_factor=4, num_feat=4)


def test_the_loss_is_the_mean_absolute_error():
    model = Restorer("hat_small_x2", overlap=8, **SIZES).eval()
    inputs = [torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8) for _ in range(2)]
    samples = [BaseDataElement(gt=torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)) for _ in range(2)]
    data = model.data_preprocessor(dict(inputs=inputs, data_samples=samples), training=True)
    loss = model(**data, mode="loss")
    restored = model.model(torch.stack(inputs) / 255)
    expected = (restored - torch.stack([sample.gt for sample in samples]) / 255).abs().mean()
    torch.testing.assert_close(loss, {"loss_l1": expected})


def test_predictions_of_any_size_are_pictures():
    model = Restorer("hat_small_x2", overlap=8, **SIZES).eval()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((9, 12), (16, 7))]
    data = dict(inputs=images, data_samples=[BaseDataElement(), BaseDataElement()])
    for image, sample in zip(images, model.test_step(data), strict=True):
        with torch.no_grad():
            restored = model.model(image[None] / 255)[0]
        assert torch.equal(sample.pred, (restored.clamp(0, 1) * 255).round().to(torch.uint8))


def test_activations_are_recomputed():
    plain, saving = (Restorer("hat_small_x2", overlap=8, with_cp=cp, **SIZES) for cp in (False, True))
    saving.load_state_dict(plain.state_dict())
    assert [stage.grad_checkpointing for stage in saving.model.stages] == [True]
    torch.testing.assert_close(saving(torch.ones(1, 3, 8, 8)), plain(torch.ones(1, 3, 8, 8)))


def test_a_larger_scale_takes_over_what_fits(tmp_path):
    """As the published ×4 models start from ×2: all but the second enlargement."""
    source = Restorer("hat_small_x2", overlap=8, **SIZES)
    torch.save({"state_dict": source.state_dict(), "meta": {}}, tmp_path / "x2.pth")
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "x2.pth"), model_name="hat_small_x2")
    model = Restorer("hat_small_x4", overlap=8, init_cfg=init, **SIZES)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    model.init_weights()
    there, here = source.model.state_dict(), model.model.state_dict()
    body = [key for key in here if not key.startswith("head.")]
    assert body and all(torch.equal(here[key], there[key]) for key in body)
    # Ours number the layers of the reconstruction: convolution, enlargement, (enlargement,) convolution.
    for new, old in ((0, 0), (2, 2), (6, 4)):
        assert torch.equal(here[f"head.{new}.weight"], there[f"head.{old}.weight"])
    assert torch.equal(here["head.4.weight"], before["head.4.weight"])
    model = Restorer("hat_small_x3", overlap=8, init_cfg=init, **SIZES)
    kept = model.model.head[2].weight.clone()
    model.init_weights()
    assert torch.equal(model.model.head[2].weight, kept)
    assert torch.equal(model.model.head[4].weight, source.model.head[4].weight)


def test_published_files_are_read(tmp_path):
    golden = golden_files.load("hat_small_x2")
    weights = {key: value.float() for key, value in golden_files.checkpoint(golden).items()}
    torch.save({"params_ema": weights}, tmp_path / "x2.pth")
    model = Restorer("hat_small_x2")
    model.load_checkpoint(tmp_path / "x2.pth")
    assert torch.equal(model.model.stem.weight, weights["conv_first.weight"])
    larger = Restorer("hat_small_x4")
    larger.load_checkpoint(tmp_path / "x2.pth", "hat_small_x2")
    assert torch.equal(larger.model.head[-1].weight, weights["conv_last.weight"])


def test_a_trained_checkpoint_is_one_of_the_timm_model(tmp_path):
    model = Restorer("hat_small_x2", overlap=8, **SIZES)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "ours.pth")
    overlay = dict(file=str(tmp_path / "ours.pth"))
    bare = timm.create_model("hat_small_x2", pretrained=True, pretrained_cfg_overlay=overlay, **SIZES)
    assert all(torch.equal(value, model.model.state_dict()[key]) for key, value in bare.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("van_b0", {}, "model_name='van_b0': gives no image"),
        ("hat_x5", {}, "did you mean hat_x"),
        ("hat_small_x2", dict(tile=24), "tile must be a positive multiple of 16"),
        ("hat_small_x2", dict(overlap=8), "overlap must be 0 or a multiple of 16"),
        ("hat_small_x2", dict(init_cfg=dict(type="Pretrained")), "init_cfg="),
    ],
)
def test_bad_model_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        Restorer(name, **options)


def test_other_weights_are_refused(tmp_path):
    model = Restorer("hat_small_x2", overlap=8, **SIZES)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        model.load_checkpoint(tmp_path / "absent.pth")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x2.pth")
    with pytest.raises(RuntimeError, match=r"x2\.pth: no checkpoint of 'hat_small_x4'"):
        Restorer("hat_small_x4", overlap=8, **SIZES).load_checkpoint(tmp_path / "x2.pth")
    with pytest.raises(ValueError, match="mode must be 'loss', 'predict' or 'tensor', got 'train'"):
        model(torch.ones(1, 3, 8, 8), mode="train")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Restorer("hat_small_x2", tile="64"), TypeError, r"tile='64': must be a whole number, got str"),
        (lambda: Restorer("hat_small_x2", overlap=16.0), TypeError, r"overlap=16\.0: must be a whole number"),
        (lambda: Restorer("hat_small_x2", with_cp=1), TypeError, r"with_cp=1: must be True or False, got int"),
    ],
)
def test_arguments_of_another_type_are_refused(make, error, message):
    with torch.device("meta"), pytest.raises(error, match=message):
        make()
