"""What `attnzoo bench models` measures, by its parts."""

import math

import pytest
import torch
from torch import nn

from attnzoo.tools.measuring import models
from attnzoo.tools.measuring.memory import fresh_processes
from attnzoo.tools.measuring.timing import spread


@pytest.mark.long
def test_memory_grows_with_what_a_pass_keeps():
    """The backward pass needs maps that the forward pass lets go."""

    def peaks(backward):
        with fresh_processes() as processes:
            return [
                processes.submit(models.peak_memory, "test_convnext", True, 1, size, backward, 1, "cpu").result()
                for size in (128, 512)
            ]

    forward, backward = peaks(False), peaks(True)
    # Activations grow with the pixels, libraries do not.
    assert forward[1] > forward[0] and backward[1] > 2 * backward[0]
    assert backward[1] > 2 * forward[1]


def test_spread_of_known_values():
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}
    assert spread([7.0]) == {"q1": 7.0, "median": 7.0, "q3": 7.0}


def test_growth_of_known_times():
    rows = [
        {"model": name, "size": size, "forward": {"median": size ** (2 * e)}}
        for name, e in (("linear", 1.0), ("quadratic", 2.0))
        for size in (512, 224, 1024)
    ]
    found = models.growth([*rows, {"model": "one", "size": 224, "forward": {"median": 1.0}}], "forward")
    assert found.keys() == {"linear", "quadratic"}
    assert math.isclose(found["linear"], 1.0) and math.isclose(found["quadratic"], 2.0)


class Restorer(nn.Module):
    def __init__(self, reductions):
        super().__init__()
        self.feature_info = [{"reduction": reduction} for reduction in reductions]


@pytest.mark.parametrize(("reductions", "sizes"), [((1, 1), [48]), ((4, 8), [224, 512])])
def test_restoration_models_have_their_own_size(reductions, sizes):
    assert models.sizes_of(Restorer(reductions), {"input_size": (3, 48, 48)}, [224, 512]) == sizes


def test_models_bound_to_a_size_are_freed():
    with torch.inference_mode():
        assert models.build("swin_tiny_patch4_window7_224", True).eval()(torch.randn(1, 3, 64, 96))[0].shape[1] == 16


def test_default_models_are_near_swin_tiny_in_size():
    """28.3 M parameters; of VAN 26.6 M is nearer than 13.9 M and 44.8 M."""
    some = {"van": ["van_b1", "van_b2", "van_b3"], "biformer": ["biformer_tiny", "biformer_stl"]}
    assert models.default_models(some) == ["van_b2", "biformer_stl", *models.NEIGHBOURS]
