"""Models equal their published implementations in float64, through the conversion that loads their checkpoints.

Every golden file that a family declares is compared here.
"""

import golden_files
import pytest
import timm
import torch
import zoo

from attnzoo.backbones.contract.facts import convert_checkpoint, families, group_of

# Rounding stays near 1e-14; 1e-9 also tells a LayerNorm eps of 1e-5 from 1e-6, which differ by less than 1e-6.
TOLERANCE = 1e-9
CASES = [
    (file, name) for names in families().values() for name in names for file in group_of(name).variants[name].golden
]


def build(file: str, name: str, **kwargs) -> torch.nn.Module:
    golden = golden_files.load(file)
    if not {"head.weight", "fc.weight"} & golden["tensors"].keys() and not zoo.restores(name):
        kwargs["num_classes"] = 0
    model = timm.create_model(name, **zoo.family(name).golden.get(file, {}), **kwargs).double().eval()
    model.load_state_dict(convert_checkpoint(golden_files.checkpoint(golden), model), strict=True)
    return model


def outputs_of(model: torch.nn.Module, x: torch.Tensor, wanted: set[str]) -> dict[str, torch.Tensor]:
    """Outputs by the names that golden files give them."""
    if "out" in wanted:
        return {"out": model(x), "features": model.forward_features(x)}
    last, maps = model.forward_intermediates(x)
    # timm's ResNets have a level of stride 2 before the stages.
    stages = maps[-len([key for key in wanted if key.startswith("stage") and key[5:].isdigit()]) :]
    outputs = {f"stage{i}": x for i, x in enumerate(stages)}
    for i, x in enumerate(stages):
        # The fresh norms of published dense code.
        normed = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), eps=1e-5)
        outputs[f"stage{i}_normed"] = normed.permute(0, 3, 1, 2)
    if "logits" in wanted:
        outputs["logits"] = model.forward_head(last)
    return outputs


@pytest.mark.parametrize(("file", "name"), CASES)
@torch.inference_mode()
def test_equals_published_implementation(file, name):
    golden = golden_files.load(file)
    model = build(file, name)
    # Some published models have tensors that they share or never use, as their family's tests say.
    if "aliases" not in golden:
        assert sum(p.numel() for p in model.parameters()) == golden["params"]
    outputs = outputs_of(model, golden_files.image(golden), set(golden["outputs"]))
    errors = {key: golden_files.error(outputs[key], want) for key, want in golden["outputs"].items()}
    assert max(errors.values()) < TOLERANCE, errors


def test_layer_norm_eps_is_pinned():
    """The tolerance is tight enough to tell the classification code's eps from the segmentation code's."""
    golden = golden_files.load("van_b0")
    model = build("van_b0", "van_b0", norm_eps=1e-5)
    with torch.inference_mode():
        logits = model(golden_files.image(golden))
    assert golden_files.error(logits, golden["outputs"]["logits"]) > TOLERANCE
