"""HAT: an image to a larger one, as published, at any size, whole or in tiles."""

import golden_files
import pytest
import timm
import torch

from attnzoo.backbones.bodies.tiling import restore_tiled
from attnzoo.backbones.hat import checkpoint_filter_fn, reflect_to_multiple

SMALL = dict(depths=(2,), num_heads=(2,), embed_dim=24, compress_ratio=4, squeeze_factor=4)


def small(**kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("hat_small_x2", **{**SMALL, **kwargs}).eval()


@pytest.mark.parametrize("file", ["hat_small_x4", "hat_small_x2"])
def test_published_files_have_averaged_weights_and_buffers(file):
    golden = golden_files.load(file)
    model, weights = timm.create_model(file), golden_files.checkpoint(golden)
    buffers = {name: torch.zeros(shape) for name, shape in golden["buffers"].items()}
    found = checkpoint_filter_fn({"params_ema": {**weights, **buffers}, "params": {}}, model)
    want = checkpoint_filter_fn(weights, model)
    assert found.keys() == want.keys() == model.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in want.items())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("hat_small_x2", 9473471),
        ("hat_small_x3", 9658111),
        ("hat_small_x4", 9621183),
        ("hat_x4", 20772507),
        ("hat_real_x4", 20772507),
        ("hat_large_x4", 40846575),
    ],
)
def test_parameters(name, parameters):
    assert sum(p.numel() for p in timm.create_model(name, device="meta").parameters()) == parameters


def test_checkpoint_of_another_scale_is_named():
    model = timm.create_model("hat_small_x3", device="meta")
    weights = golden_files.checkpoint(golden_files.load("hat_small_x4"))
    with pytest.raises(ValueError, match="the checkpoint enlarges 4 times, the model 3 times"):
        checkpoint_filter_fn({"params": weights}, model)


def test_published_checkpoint_serves_features_and_own_layout_is_untouched():
    weights = golden_files.checkpoint(golden_files.load("hat_small_x4"))
    features = timm.create_model("hat_small_x4", global_pool="")
    features.load_state_dict(checkpoint_filter_fn(dict(weights), features), strict=True)
    own = features.state_dict()
    assert checkpoint_filter_fn(own, features) is own
    del weights["conv_first.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*stem.weight"):
        features.load_state_dict(checkpoint_filter_fn(weights, features))


@pytest.mark.parametrize("upscale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(16, 32), (7, 20), (1, 1), (19, 50)])
def test_any_size_and_scale(upscale, size):
    model = small(upscale=upscale)
    with torch.inference_mode():
        assert model(torch.rand(2, 3, *size)).shape == (2, 3, upscale * size[0], upscale * size[1])
        assert model.forward_features(torch.rand(1, 3, *size)).shape == (1, 24, *size)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 20), (16, 9), (17, 31)])
def test_reflection(size):
    """As PyTorch reflects where it can, and repeatedly where it cannot."""
    x = torch.rand(2, 3, *size)
    got = reflect_to_multiple(x, 16)
    height, width = (-(-side // 16) * 16 for side in size)
    want = x
    while want.shape[2:] != (height, width):
        right = min(width - want.shape[3], want.shape[3] - 1)
        bottom = min(height - want.shape[2], want.shape[2] - 1)
        if want.shape[2] == 1:
            want = want.expand(-1, -1, height, -1)
        elif want.shape[3] == 1:
            want = want.expand(-1, -1, -1, width)
        else:
            want = torch.nn.functional.pad(want, (0, right, 0, bottom), "reflect")
    assert torch.equal(got, want)


def test_padding_is_that_of_the_reflected_image():
    model = small()
    x = torch.rand(1, 3, 19, 30)
    with torch.inference_mode():
        whole = model(torch.nn.functional.pad(x, (0, 2, 0, 13), "reflect"))
        torch.testing.assert_close(model(x), whole[:, :, :38, :60])


def test_levels_of_features():
    model = timm.create_model("hat_small_x4", **{**SMALL, "depths": (1,) * 3, "num_heads": (2,) * 3}).eval()
    wrapped = timm.create_model(
        "hat_small_x4", features_only=True, **{**SMALL, "depths": (1,) * 3, "num_heads": (2,) * 3}
    ).eval()
    assert not any(key.startswith("model.head") for key in wrapped.state_dict())
    wrapped.model.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    x = torch.rand(1, 3, 20, 33)
    with torch.inference_mode():
        maps = wrapped(x)
        assert wrapped.feature_info.reduction() == [1] * 4 and [m.shape for m in maps] == [(1, 24, 20, 33)] * 4
        assert torch.equal(maps[-1], model.forward_features(x))
        normed = model.forward_intermediates(x, indices=[0], norm=True, intermediates_only=True)[0]
        want = model.norm(maps[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed, want)
    assert len(timm.create_model("hat_small_x4", device="meta", features_only=True).feature_info.channels()) == 7


def test_the_reconstruction_can_be_taken_off():
    model = small()
    x = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        features = model.forward_features(x)
        assert torch.equal(model.forward_head(features), model(x))
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        model.reset_classifier(0)
        assert torch.equal(model(x), features.mean((2, 3)))
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
    assert small(num_classes=0, global_pool="avg")(x).shape == (2, 24)
    with pytest.raises(ValueError, match=r"num_classes=.*: 0 is needed"):
        model.reset_classifier(10)


def test_grey_images():
    assert small(in_chans=1)(torch.rand(1, 1, 16, 16)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depths=(2, 2)), r"depths=\(2, 2\), num_heads=\(\d+,\): one entry a stage"),
        (dict(num_heads=(5,)), r"embed_dim=24: multiples of num_heads=\(5,\) are needed"),
        (dict(upscale=6), "upscale=6: 3 or a power of two is needed"),
        (dict(overlap_ratio=0.4, window_size=8), "even overlap"),
        (dict(squeeze_factor=30), "squeeze_factor=30: at most embed_dim=24"),
        (dict(global_pool="max"), "global_pool='max': 'avg' or '' is needed"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


def smooth_image(height: int, width: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.nn.functional.interpolate(torch.rand(1, 3, 7, 9), (height, width), mode="bicubic").clamp(0, 1)


def test_tiles_equal_the_whole_image_in_their_interiors():
    """Stated tolerance: a thousandth of the result's deviation; seams are worse, as a tile does not see beyond."""
    model = small()
    image = smooth_image(112, 141)
    steps = []
    with torch.inference_mode():
        whole = model(image)
    tiled = restore_tiled(model, image, 48, 16, progress=lambda tiles: steps.extend(tiles) or iter(tiles))
    assert tiled.shape == whole.shape and len(steps) == 9
    error = (tiled - whole).abs() / whole.std()
    assert error.max() > 0
    interiors = [(2 * (top + 12), 2 * (left + 12), 48) for top, left in steps]
    worst = max(error[:, :, top : top + side, left : left + side].max() for top, left, side in interiors)
    assert worst < 1e-3, worst
    assert restore_tiled(model, image, 160, 16).equal(whole)


def test_tiles_bound_what_the_model_sees():
    sizes = []

    class Nearest(torch.nn.Module):
        def forward(self, x):
            sizes.append(tuple(x.shape[2:]))
            return x.repeat_interleave(3, 2).repeat_interleave(3, 3)

    image = torch.rand(2, 1, 25, 40)
    assert torch.equal(restore_tiled(Nearest(), image, 10, 3), Nearest()(image))
    assert max(sizes[:-1]) == (16, 16) and len(sizes) == 13


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (0, 16, "tile must be a positive multiple of 16, got 0"),
        (32.0, 16, r"tile must be a positive multiple of 16, got 32\.0"),
        (40, 16, "tile must be a positive multiple of 16, got 40"),
        (32, -16, "overlap must be 0 or a multiple of 16, got -16"),
        (32, 16.0, r"overlap must be 0 or a multiple of 16, got 16\.0"),
        (32, 8, "overlap must be 0 or a multiple of 16, got 8"),
    ],
)
def test_bad_tiles(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        restore_tiled(small(), torch.rand(1, 3, 64, 64), tile, overlap)


@pytest.mark.long
def test_learns_to_enlarge():
    """From scratch it explains nine tenths of held-out edges' variance within seconds."""
    torch.manual_seed(0)
    model = timm.create_model("hat_small_x2", **SMALL, window_size=8).train()
    optimiser = torch.optim.AdamW(model.parameters(), 4e-3)

    def draw(count: int) -> torch.Tensor:
        """Half planes with straight edges."""
        angle, shift = torch.rand(count, 1, 1) * 6.28, torch.rand(count, 1, 1) - 0.5
        y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
        return ((x * angle.cos() + y * angle.sin() > shift).float()[:, None] * 0.8 + 0.1).expand(-1, 3, -1, -1)

    for _ in range(100):
        target = draw(8)
        loss = (model(torch.nn.functional.avg_pool2d(target, 2)) - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    target = draw(64)
    low = torch.nn.functional.avg_pool2d(target, 2)
    with torch.inference_mode():
        ours = (model.eval()(low) - target).square().mean()
    assert ours < 0.1 * target.var(), (ours, target.var())
