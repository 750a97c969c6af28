"""Names of published checkpoints."""

import golden_files
import torch

from attnzoo.heads.bev.checkpoints import convert_bevformer, is_published


def test_names_of_a_published_model():
    golden = golden_files.load("bevformer_head")
    state = {f"pts_bbox_head.{key}": torch.zeros(1) for key in golden["tensors"]}
    state |= {"pts_bbox_head.code_weights": torch.zeros(10), "img_backbone.conv1.weight": torch.zeros(1)}
    state |= {"img_neck.fpn_convs.0.conv.weight": torch.zeros(1)}
    converted = convert_bevformer(state)
    assert is_published(state) and not is_published(converted)
    assert len(converted) == len(state) - 1
    assert {key.partition(".")[0] for key in converted} == {"backbone", "neck", "bev_encoder", "detection_head"}
    assert convert_bevformer(converted) == converted
    assert not any("attentions." in key or "ffns." in key or "pts_bbox" in key for key in converted)
