"""Published checkpoints of BEVFormer, by name."""

import re
from collections.abc import Mapping

from torch import Tensor

from ..mm.published import renamed

_PARTS = {
    "img_backbone.": "backbone.",
    "img_neck.": "neck.",
    "pts_bbox_head.transformer.encoder.": "bev_encoder.encoder.",
    "pts_bbox_head.transformer.can_bus_mlp.": "bev_encoder.can_bus_mlp.",
    "pts_bbox_head.transformer.cams_embeds": "bev_encoder.camera_embeddings",
    "pts_bbox_head.transformer.level_embeds": "bev_encoder.level_embeddings",
    "pts_bbox_head.bev_embedding.": "bev_encoder.bev_embedding.",
    "pts_bbox_head.positional_encoding.": "bev_encoder.positional_encoding.",
    "pts_bbox_head.transformer.decoder.": "detection_head.decoder.",
    "pts_bbox_head.transformer.reference_points.": "detection_head.reference_points.",
    "pts_bbox_head.": "detection_head.",
}
# In a layer: what a name behind its number begins with.
_ENCODER = {
    "attentions.0.": "temporal_attention.",
    "attentions.1.deformable_attention.": "spatial_attention.",
    "attentions.1.": "spatial_attention.",
    "ffns.0.": "ffn.",
}
_DECODER = {"attentions.0.attn.": "self_attention.", "attentions.1.": "cross_attention.", "ffns.0.": "ffn."}
# A setting of the loss, which published checkpoints carry.
_SETTING = "pts_bbox_head.code_weights"


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether these are names of a published checkpoint."""
    return any(key.startswith(("img_backbone.", "img_neck.", "pts_bbox_head.")) for key in state)


def convert_bevformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published BEVFormer (`bevformer_{tiny,small,base}_epoch_24.pth`) with the names of `BEVDetector`.

    Its parts there are `backbone` and `neck`, mmdet's `ResNet` and `FPN`, `bev_encoder` and `detection_head`. What has
    no published name stays as it is. Source of the names: https://github.com/fundamentalvision/BEVFormer.

    Args:
        state: State dict of a whole model, or of some of its parts with their prefixes.
    """
    return {_renamed(key): value for key, value in state.items() if key != _SETTING}


def _renamed(key: str) -> str:
    key = renamed(key, _PARTS)
    layer = re.match(r"(bev_encoder\.encoder|detection_head\.decoder)\.layers\.\d+\.", key)
    if layer is None:
        return key
    names = _ENCODER if layer[1].startswith("bev") else _DECODER
    return layer[0] + renamed(key[layer.end() :], names)
