"""LightHamHead: mmseg's head in all but the random bases of evaluation."""

import pytest
import torch
from deploy_models import Levels, export_free, run
from mmseg.models.decode_heads import LightHamHead as MMSegLightHamHead
from torch import Tensor

from attnzoo.heads import LightHamHead

ARGS = dict(
    in_channels=[8, 16, 24], in_index=[1, 2, 3], channels=16, ham_channels=32, ham_kwargs=dict(MD_S=2, MD_R=4),
    num_classes=5, norm_cfg=dict(type="GN", num_groups=4), dropout_ratio=0.0,
)  # fmt: skip


def maps(batch: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height)
    shapes = [(4, height * 2, width * 2), (8, height, width)]
    shapes += [(c, -(-height // s), -(-width // s)) for c, s in ((16, 2), (24, 4))]
    return [torch.randn(batch, *shape, generator=generator, dtype=dtype) for shape in shapes]


def test_evaluation_is_deterministic_and_leaves_the_global_generator_alone():
    one, other = LightHamHead(**ARGS).eval(), LightHamHead(**ARGS).eval()
    other.load_state_dict(one.state_dict())
    inputs = maps(2, 9, 13)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second, third = one(inputs), one(inputs), other(inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert first.shape == (2, 5, 9, 13)


@pytest.mark.parametrize("assign", [False, True])
def test_built_without_memory_it_has_its_bases_once_it_is_loaded(assign):
    head = LightHamHead(**ARGS).double().eval()
    with torch.device("meta"):
        other = LightHamHead(**ARGS).double().eval()
    if not assign:
        other.to_empty(device="cpu")
        other.hamburger.ham.bases.fill_(torch.nan)
    other.load_state_dict(head.state_dict(), assign=assign)
    inputs = maps(2, 9, 13, torch.float64)
    with torch.no_grad():
        assert torch.equal(head(inputs), other(inputs))


def test_an_image_gets_the_same_prediction_in_any_batch():
    head = LightHamHead(**ARGS).double().eval()
    inputs = maps(3, 8, 8, torch.float64)
    with torch.no_grad():
        together = head(inputs)
        alone = torch.cat([head([level[i : i + 1] for level in inputs]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_training_draws_new_bases():
    head = LightHamHead(**ARGS).train()
    inputs = maps(1, 8, 8)
    assert not torch.equal(head(inputs), head(inputs))
    fixed = LightHamHead(**{**ARGS, "ham_kwargs": dict(MD_S=2, MD_R=4, rand_init=False)}).train()
    assert torch.equal(fixed(inputs), fixed(inputs))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_mmsegs_head_started_from_the_same_bases(training, monkeypatch):
    ours, theirs = LightHamHead(**ARGS).double(), MMSegLightHamHead(**ARGS).double()
    theirs.load_state_dict(ours.state_dict())
    ours.train(training)
    theirs.train(training)
    bases = ours.hamburger.ham.bases
    for head in (ours, theirs):
        monkeypatch.setattr(head.hamburger.ham, "_build_bases", lambda B, *_, **__: bases.repeat(B, 1, 1))
    inputs = maps(2, 9, 13, torch.float64)
    torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=0, atol=0)


def test_published_checkpoints_load_strictly():
    """They have the keys of mmseg's head."""
    ours, theirs = LightHamHead(**ARGS), MMSegLightHamHead(**ARGS)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict(), strict=True)


def test_channels_last_and_half_precision():
    head = LightHamHead(**ARGS).eval()
    inputs = maps(2, 8, 12)
    with torch.no_grad():
        expected = head(inputs)
        last = head.to(memory_format=torch.channels_last)([x.to(memory_format=torch.channels_last) for x in inputs])
        torch.testing.assert_close(last, expected)
        for training in (False, True):
            half = head.train(training).bfloat16()([x.bfloat16() for x in inputs])
            assert half.dtype == torch.bfloat16
            assert half.isfinite().all()


@pytest.mark.long
def test_exports_to_onnx_with_free_batch_and_size(tmp_path):
    # Each step is in the graph once more.
    arguments = ARGS | dict(ham_kwargs=dict(MD_S=2, MD_R=4, eval_steps=2))
    head = Levels(LightHamHead(**arguments)).eval()
    session = export_free(head, maps(2, 8, 12), tmp_path)
    for size in ((2, 8, 12), (1, 9, 13), (3, 16, 7)):
        (found,) = run(session, *maps(*size))
        with torch.no_grad():
            torch.testing.assert_close(found, head(*maps(*size)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(ham_channels=0), r"ham_channels=0: must be 1 or more"),
        (dict(ham_channels=64.0), r"ham_channels=64\.0: must be a whole number, got float"),
        (dict(ham_kwargs=16), r"ham_kwargs=16: must be a dict, got int"),
        (dict(ham_kwargs=dict(MD_Q=4)), r"ham_kwargs: has no 'MD_Q'; allowed are MD_S, MD_R, train_steps"),
        (dict(ham_kwargs=dict(MD_R="4")), r"ham_kwargs\.MD_R='4': must be a whole number, got str"),
        (dict(ham_kwargs=dict(train_steps=0)), r"ham_kwargs\.train_steps=0: must be 1 or more"),
        (dict(ham_kwargs=dict(rand_init=0)), r"ham_kwargs\.rand_init=0: must be True or False, got int"),
        (dict(ham_kwargs=dict(MD_S=3)), r"ham_kwargs\.MD_S=3: must divide ham_channels=8"),
    ],
)
def test_bad_arguments(arguments, message):
    head = dict(in_channels=[16, 24], in_index=[0, 1], channels=8, num_classes=2, ham_channels=8)
    with pytest.raises((TypeError, ValueError), match=message):
        LightHamHead(**(head | arguments))
