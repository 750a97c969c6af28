"""The tiles that a run on a GPU tries."""

import importlib

import pytest
import torch

from attnzoo.kernels import _dispatch

pytest.importorskip("triton")
sweep = importlib.import_module("attnzoo.tools.measuring.gpu.sweep")
VARIANTS = sweep.variants(dry=False)


def test_variants_name_what_there_is():
    for variant in VARIANTS:
        assert variant.dtype in ("bfloat16", "float32") and variant.subject in sweep.MAIN
        if variant.options is None:
            assert not variant.changes
            continue
        where, name = variant.options.split(":")
        module = importlib.import_module(f"attnzoo.kernels.{where}")
        assert callable(getattr(module, name))
        kernels = [x for key, x in vars(module).items() if key.endswith("_kernel")]
        known = {"num_warps", "num_stages"}.union(*(kernel.arg_names for kernel in kernels))
        assert variant.changes.keys() <= known, variant.title
    assert len({(variant.subject, variant.dtype, variant.title) for variant in VARIANTS}) == len(VARIANTS)


def test_every_subject_that_is_changed_has_its_own_choice_beside_it():
    chosen = {(variant.subject, variant.dtype) for variant in VARIANTS if variant.is_chosen}
    assert {(variant.subject, variant.dtype) for variant in VARIANTS} == chosen


def test_within_a_variant_the_kernels_take_its_tiles_and_precision():
    module = importlib.import_module("attnzoo.kernels.routing_attention.triton")
    kind = (64, 64, 32, torch.float32, "ieee", True)
    before = module._forward_options(*kind)
    subject = VARIANTS[0].subject
    variant = sweep.Variant(subject, "routing_attention.triton:_forward_options", {"num_warps": 16}, precision="tf32x3")
    with variant.chosen():
        assert module._forward_options(*kind) == {**before, "num_warps": 16}
        assert _dispatch.dot_precision() == "tf32x3"
    assert module._forward_options(*kind) == before and _dispatch.dot_precision() == "ieee"
    assert variant.title == "_forward_options, num_warps 16, tf32x3" and not variant.is_chosen
