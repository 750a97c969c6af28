"""Models of every class at tiny widths, with any size, batch, format and mode, and with wrong arguments."""

import contextlib
import math
import random

import campaign
import pytest
import timm
import torch
from zoo import map_side, one_of_a_kind, restores, shallow_arguments

from attnzoo.backbones.contract import facts

DRAWS = 500


def _pyramid(rng: random.Random, heads: bool = True) -> dict:
    stages = rng.choice((1, 2, 3, 4, 4, 4))
    counts = [rng.choice((1, 2, 4)) for _ in range(stages)]
    kwargs = dict(
        depths=[rng.choice((1, 1, 2)) for _ in range(stages)],
        embed_dims=[8 * count * rng.choice((1, 2)) for count in counts],
    )
    return {**kwargs, "num_heads": counts} if heads else kwargs


def _body(rng: random.Random, kind: str) -> dict:
    """Arguments of Agent's and InLine's pyramids."""
    kwargs = _pyramid(rng)
    stages = len(kwargs["depths"])
    kwargs["img_size"] = rng.choice((32, 48, 64, 96))
    if kind == "pvt":
        kwargs |= dict(mlp_ratios=[2.0] * stages, sr_ratios=[rng.choice((1, 2, 8)) for _ in range(stages)])
    if kind == "swin":
        kwargs["window_size"] = rng.choice((1, 2, 3, 7))
    if kind == "cswin":
        kwargs["num_heads"] = [2 * count for count in kwargs["num_heads"]]
        kwargs["embed_dims"] = [2 * dim for dim in kwargs["embed_dims"]]
        kwargs["split_sizes"] = [rng.choice((None, 1, 2, 7)) for _ in range(stages)]
    return kwargs


def _agent(rng: random.Random, kind: str) -> dict:
    kwargs = _body(rng, kind)
    stages = len(kwargs["depths"])
    kwargs["num_agents"] = [rng.choice((1, 4, 9)) for _ in range(stages)]
    kwargs["agent_blocks"] = [rng.choice((None, 0, 1)) for _ in range(stages)]
    if rng.random() < 0.5:
        kwargs["agent_grids"] = [rng.choice((1, 3, (2, 4))) for _ in range(stages)]
    return kwargs


def _inline(rng: random.Random, kind: str) -> dict:
    kwargs = _body(rng, kind)
    kwargs["inline_blocks"] = [rng.choice((None, 0, 1)) for _ in kwargs["depths"]]
    return kwargs


def _deit(rng: random.Random) -> dict:
    heads, patch = rng.choice((1, 2, 4)), rng.choice((2, 4, 7, 16))
    pool = rng.choice(("token", "avg", "max", "avgmax"))
    return dict(
        depth=rng.choice((1, 2)), embed_dim=8 * heads, num_heads=heads, patch_size=patch, img_size=64, global_pool=pool
    )


def _agent_deit(rng: random.Random) -> dict:
    return {**_deit(rng), "num_agents": rng.choice((1, 4, 9)), "agent_blocks": rng.choice((None, 0, 1))}


def _biformer(rng: random.Random) -> dict:
    kwargs = _pyramid(rng, heads=False)
    n_win = rng.choice((1, 2, 3, 7))
    stages = len(kwargs["depths"])
    topks = [rng.choice((-2, 1, n_win, n_win**2)) for _ in range(stages)]
    return {**kwargs, "head_dim": 8, "n_win": n_win, "topks": topks, "mlp_ratios": [2.0] * stages}


def _litv2(rng: random.Random) -> dict:
    kwargs = _pyramid(rng)
    return {**kwargs, "local_ws": [rng.choice((0, 1, 2, 3)) for _ in kwargs["depths"]], "alpha": rng.random()}


def _nat(rng: random.Random) -> dict:
    kwargs = _pyramid(rng)
    dilations = [[rng.choice((1, 2, 3)) for _ in range(rng.choice((1, 2)))] for _ in kwargs["depths"]]
    init_values = rng.choice((None, 1e-5, 1.0))
    return {**kwargs, "dilations": dilations, "kernel_size": rng.choice((3, 5, 7)), "init_values": init_values}


def _van(rng: random.Random) -> dict:
    kwargs = _pyramid(rng, heads=False)
    return {**kwargs, "mlp_ratios": [2.0] * len(kwargs["depths"])}


def _coat(rng: random.Random) -> dict:
    dims = [8 * rng.choice((1, 2)) for _ in range(4)]
    parallel = rng.choice((0, 1, 2))
    if parallel:
        dims[1:] = [dims[1]] * 3
    pool, depths = rng.choice(("token", "avg")), [rng.choice((1, 2)) for _ in range(4)]
    return dict(embed_dims=dims, serial_depths=depths, parallel_depth=parallel, mlp_ratios=[2.0] * 4, global_pool=pool)


def _hat(rng: random.Random) -> dict:
    groups, heads = rng.choice((1, 2)), rng.choice((1, 2))
    return dict(
        depths=[rng.choice((1, 2)) for _ in range(groups)],
        num_heads=[heads] * groups,
        embed_dim=8 * heads,
        window_size=rng.choice((4, 8)),
        overlap_ratio=rng.choice((0.0, 0.5, 1.0)),
        compress_ratio=rng.choice((1, 3, 8)),
        squeeze_factor=rng.choice((1, 2, 8)),
        num_feat=4,
        upscale=rng.choice((1, 2, 3, 4)),
    )


def _resnet(rng: random.Random) -> dict:
    return dict(layers=[1, 1, 1, 1], channels=[16, 16, 32, 32], zero_init_last=rng.random() < 0.5)


def _mobilenet(rng: random.Random) -> dict:
    return dict(depths=[1] * 7)


MAKERS = {
    "agent_deit_tiny": _agent_deit,
    "agent_pvt_tiny": lambda rng: _agent(rng, "pvt"),
    "agent_swin_tiny": lambda rng: _agent(rng, "swin"),
    "agent_cswin_tiny": lambda rng: _agent(rng, "cswin"),
    "inline_deit_tiny": _deit,
    "inline_pvt_tiny": lambda rng: _inline(rng, "pvt"),
    "inline_swin_tiny": lambda rng: _inline(rng, "swin"),
    "biformer_tiny": _biformer,
    "biformer_stl": _biformer,
    "litv2_small": _litv2,
    "nat_mini": _nat,
    "dinat_s_tiny": _nat,
    "van_b0": _van,
    "mscan_tiny": _van,
    "coat_tiny": _coat,
    "hat_small_x2": _hat,
    "resnet18_cbam": _resnet,
    "resnet18_triplet": _resnet,
    "resnet18_ela": _resnet,
    "resnet50_bam": _resnet,
    "mobilenetv2_100_cbam": _mobilenet,
    "mobilenetv2_100_ela": _mobilenet,
}
_DRAWN = {facts.group_of(name).family for name in MAKERS}
# Families of which nothing more is known here than their test data.
MAKERS |= {
    name: lambda rng, name=name: dict(shallow_arguments(name))
    for name in one_of_a_kind()
    if facts.group_of(name).family not in _DRAWN
}
# Values that no argument, or not every argument, allows.
WRONG = (0, -1, 1.5, -0.5, 2, 7, math.nan, math.inf, "a", "", None, (), [], (0, 0, 0, 0), (1,), [-1, 1, 1, 1], {}, True)


def _one_clear_error(error: Exception, kwargs: dict) -> bool:
    message = str(error)
    return isinstance(error, ValueError | TypeError) and "\n" not in message and any(key in message for key in kwargs)


def _image(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31))).to(dtype)
    form = rng.choice(("plain", "channels_last", "strided", "transposed"))
    if form == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if form == "strided":
        return x.repeat_interleave(2, 3)[..., ::2]
    return x.transpose(2, 3).contiguous().transpose(2, 3) if form == "transposed" else x


def draw_model(seed: int) -> str:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    name = rng.choice(list(MAKERS))
    kwargs = MAKERS[name](rng)
    restoring = restores(name)
    chans, classes = rng.choice((1, 3, 3, 4)), 0 if restoring else rng.choice((0, 1, 5))
    kwargs |= dict(in_chans=chans, drop_rate=rng.choice((0.0, 0.5)), drop_path_rate=rng.choice((0.0, 0.5)))
    if not restoring:
        kwargs["num_classes"] = classes
    if rng.random() < 0.2:
        kwargs[rng.choice(list(kwargs))] = rng.choice(WRONG)
        return _wrong(name, kwargs)
    features = rng.random() < 0.5
    if features:
        levels = len(timm.create_model(name, device="meta", **kwargs).feature_info)
        chosen = sorted(rng.sample(range(levels), rng.randint(1, levels)))
        kwargs |= dict(features_only=True, out_indices=[i - levels if rng.random() < 0.3 else i for i in chosen])
    dtype = rng.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
    model = timm.create_model(name, **kwargs).to(dtype)
    batch, height, width = rng.choice((0, 1, 2, 2)), rng.randint(1, 70), rng.randint(1, 70)
    if restoring:
        height, width = min(height, 24), min(width, 24)
    x = _image(rng, (batch, chans, height, width), dtype)
    mode = rng.choice(("train", "eval", "inference"))
    model.train(mode == "train")
    poisoned = batch > 0 and mode != "train" and rng.random() < 0.2
    if poisoned:
        x = x.clone()
        x[0, :, 0, 0] = math.nan
    # Where timm 1.0.26 takes the features of its ResNets, it recomputes an activation in place, which PyTorch refuses.
    fails_in_timm = timm.__version__ == "1.0.26" and features and name.startswith("resnet")
    can_recompute = hasattr(model, "set_grad_checkpointing") and not fails_in_timm
    if rng.random() < 0.2 and mode != "inference" and can_recompute:
        model.set_grad_checkpointing()
    # oneDNN leaves parts of a convolution's weight gradient unwritten, in bfloat16 on maps one pixel wide.
    library = torch.backends.mkldnn.flags(enabled=dtype != torch.bfloat16)
    with library, torch.inference_mode() if mode == "inference" else contextlib.nullcontext():
        try:
            out = model(x)
        except ValueError as error:
            # PyTorch's batch norm has no statistics of a single value.
            if mode == "train" and batch == 1 and "more than 1 value per channel" in str(error):
                return "one value for a batch norm"
            raise
    _check_shapes(model, kwargs, out, (batch, height, width), features, restoring, classes)
    outputs = out if features else [out]
    assert all(y.dtype == dtype for y in outputs)
    if poisoned:
        assert any(y[0].isnan().any() for y in outputs), "NaN goes in and none comes out"
        assert all(y[1:].isfinite().all() for y in outputs), "NaN of one image in another"
        return "NaN passed on"
    assert all(y.isfinite().all() for y in outputs)
    if mode != "inference":
        with torch.backends.mkldnn.flags(enabled=dtype != torch.bfloat16):
            sum(y.square().sum() for y in outputs).backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is None:
                assert features, f"{key} has no gradient"
            else:
                assert parameter.grad.isfinite().all(), key
    return f"{'features' if features else 'output'} in {mode}"


def _check_shapes(model, kwargs, out, size, features, restoring, classes) -> None:
    batch, height, width = size
    if features:
        info = model.feature_info.get_dicts()
        assert len(out) == len(info) == len(kwargs["out_indices"])
        for y, level in zip(out, info, strict=True):
            assert y.shape == (batch, level["num_chs"], map_side(level, height), map_side(level, width))
    elif restoring:
        assert out.shape == (batch, kwargs["in_chans"], kwargs["upscale"] * height, kwargs["upscale"] * width)
    else:
        assert out.shape == (batch, classes or model.head_hidden_size)


def _wrong(name: str, kwargs: dict) -> str:
    try:
        model = timm.create_model(name, **kwargs).eval()
    except Exception as error:
        if not _one_clear_error(error, kwargs):
            raise
        return "refused"
    # What was not refused works.
    with torch.inference_mode():
        out = model(torch.rand(1, kwargs["in_chans"] or 3, 17, 23))
    assert out.isfinite().all()
    return "allowed after all"


@pytest.mark.long
def test_models():
    campaign.in_own_interpreter(__file__)


if __name__ == "__main__":
    torch.set_num_threads(1)
    campaign.campaign("models", draw_model, DRAWS)
