"""Every family equals its published implementation in float64, through the conversion that loads its checkpoints."""

import sys

import golden_files
import pytest
import timm
import torch

# Rounding stays near 1e-14; 1e-9 also tells a LayerNorm eps of 1e-5 from 1e-6, which differ by less than 1e-6.
TOLERANCE = 1e-9


def build(name: str, golden: dict, **kwargs) -> torch.nn.Module:
    classes = 1000 if "head.weight" in golden["tensors"] else 0
    model = timm.create_model(name, num_classes=classes, **kwargs).double().eval()
    convert = sys.modules[type(model).__module__].checkpoint_filter_fn
    model.load_state_dict(convert(golden_files.checkpoint(golden), model), strict=True)
    return model


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("van_b0", "van_b0"),
        ("van_b0_200x264", "van_b0"),
        ("van_b1", "van_b1"),
        ("mscan_t", "mscan_tiny"),
        ("biformer_tiny", "biformer_tiny"),
        ("biformer_tiny_256x320", "biformer_tiny"),
        ("biformer_stl", "biformer_stl"),
        ("litv2_small", "litv2_small"),
        ("agent_deit_tiny", "agent_deit_tiny"),
        ("agent_pvt_tiny", "agent_pvt_tiny"),
        ("agent_swin_tiny", "agent_swin_tiny"),
        ("inline_pvt_tiny", "inline_pvt_tiny"),
        ("nat_mini", "nat_mini"),
        ("dinat_mini", "dinat_mini"),
    ],
)
@torch.inference_mode()
def test_equals_published_implementation(file, name):
    golden = golden_files.load(file)
    model = build(name, golden)
    assert sum(p.numel() for p in model.parameters()) == golden["params"]
    last, maps = model.forward_intermediates(golden_files.image(golden))
    outputs = {f"stage{i}": x for i, x in enumerate(maps)}
    for i, x in enumerate(maps):
        # The fresh norms of published dense code.
        normed = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), eps=1e-5)
        outputs[f"stage{i}_normed"] = normed.permute(0, 3, 1, 2)
    if "logits" in golden["outputs"]:
        outputs["logits"] = model.forward_head(last)
    errors = {key: golden_files.error(outputs[key], want) for key, want in golden["outputs"].items()}
    assert max(errors.values()) < TOLERANCE, errors


def test_layer_norm_eps_is_pinned():
    """The tolerance is tight enough to tell the classification code's eps from the segmentation code's."""
    golden = golden_files.load("van_b0")
    model = build("van_b0", golden, norm_eps=1e-5)
    with torch.inference_mode():
        logits = model(golden_files.image(golden))
    assert golden_files.error(logits, golden["outputs"]["logits"]) > TOLERANCE
