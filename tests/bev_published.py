"""Names and shapes of BEVFormer's published checkpoints, of any size."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor


def sizes_of(cfg: Config) -> dict[str, int]:
    """The sizes of a config's model, named as in the golden files."""
    encoder, head = cfg.model.bev_encoder, cfg.model.detection_head
    return dict(
        embed_dims=encoder.get("embed_dims", 256),
        bev_h=encoder.rows,
        bev_w=encoder.columns,
        num_levels=encoder.num_levels,
        encoder_layers=encoder.num_layers,
        num_heads=encoder.get("num_heads", 8),
        spatial_points=8,
        temporal_points=4,
        decoder_points=4,
        decoder_layers=head.get("num_layers", 6),
        num_query=head.get("num_query", 900),
        num_classes=10,
        code_size=10,
        feedforward_channels=encoder.get("feedforward_channels", 512),
    )


def _linear(shapes: dict, names: Mapping[str, tuple[int, int]]) -> None:
    """Weights and biases of linear layers, (out, in) by name."""
    for name, (out, channels) in names.items():
        # PyTorch's attention has them under names of its own.
        joint = "_" if name.endswith("in_proj") else "."
        shapes |= {f"{name}{joint}weight": [out, channels], f"{name}{joint}bias": [out]}


def head_shapes(sizes: Mapping[str, Any]) -> dict[str, list[int]]:
    """Of the published head, transformer included, without its prefix."""
    c, hidden, heads = sizes["embed_dims"], sizes["feedforward_channels"], sizes["num_heads"]
    spatial = heads * sizes["num_levels"] * sizes["spatial_points"]
    # Of two BEV maps.
    temporal = heads * 2 * sizes["temporal_points"]
    decoder = heads * sizes["decoder_points"]
    shapes: dict[str, list[int]] = {
        "bev_embedding.weight": [sizes["bev_h"] * sizes["bev_w"], c],
        "positional_encoding.row_embed.weight": [sizes["bev_h"], c // 2],
        "positional_encoding.col_embed.weight": [sizes["bev_w"], c // 2],
        "query_embedding.weight": [sizes["num_query"], 2 * c],
        "transformer.cams_embeds": [6, c],
        "transformer.level_embeds": [sizes["num_levels"], c],
    }
    normed = ["transformer.can_bus_mlp.norm"]
    _linear(
        shapes,
        {
            "transformer.reference_points": (3, c),
            "transformer.can_bus_mlp.0": (c // 2, 18),
            "transformer.can_bus_mlp.2": (c, c // 2),
        },
    )
    parts: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
        "encoder": (
            sizes["encoder_layers"],
            {
                "attentions.0.sampling_offsets": (2 * temporal, 2 * c),
                "attentions.0.attention_weights": (temporal, 2 * c),
                "attentions.0.value_proj": (c, c),
                "attentions.0.output_proj": (c, c),
                "attentions.1.deformable_attention.sampling_offsets": (2 * spatial, c),
                "attentions.1.deformable_attention.attention_weights": (spatial, c),
                "attentions.1.deformable_attention.value_proj": (c, c),
                "attentions.1.output_proj": (c, c),
            },
        ),
        "decoder": (
            sizes["decoder_layers"],
            {
                "attentions.0.attn.in_proj": (3 * c, c),
                "attentions.0.attn.out_proj": (c, c),
                "attentions.1.sampling_offsets": (2 * decoder, c),
                "attentions.1.attention_weights": (decoder, c),
                "attentions.1.value_proj": (c, c),
                "attentions.1.output_proj": (c, c),
            },
        ),
    }
    for part, (layers, names) in parts.items():
        for i in range(layers):
            layer = f"transformer.{part}.layers.{i}"
            networks = {"ffns.0.layers.0.0": (hidden, c), "ffns.0.layers.1": (c, hidden)}
            _linear(shapes, {f"{layer}.{name}": shape for name, shape in (names | networks).items()})
            normed += [f"{layer}.norms.{k}" for k in range(3)]
    for i in range(sizes["decoder_layers"]):
        outs = {"cls": sizes["num_classes"], "reg": sizes["code_size"]}
        for branch, places in {"cls": (0, 3, 6), "reg": (0, 2, 4)}.items():
            _linear(
                shapes,
                {f"{branch}_branches.{i}.{k}": (outs[branch] if k == places[-1] else c, c) for k in places},
            )
        normed += [f"cls_branches.{i}.{k}" for k in (1, 4)]
    for name in normed:
        shapes |= {f"{name}.weight": [c], f"{name}.bias": [c]}
    return shapes


def published_state(cfg: Config) -> dict[str, Tensor]:
    """A published checkpoint of a config's model, of tensors of the current device; 0 but for the backbone's norms."""
    state = {f"pts_bbox_head.{key}": torch.zeros(shape) for key, shape in head_shapes(sizes_of(cfg)).items()}
    state["pts_bbox_head.code_weights"] = torch.zeros(10)
    for prefix, part in {"img_backbone.": cfg.model.backbone, "img_neck.": cfg.model.neck}.items():
        state |= {prefix + key: value for key, value in MODELS.build(part).state_dict().items()}
    return state
