"""The heads that are trained: attentive pooling or the mean, and a linear classifier."""

import torch
from torch import Tensor, nn

from ..arguments import check_choice, check_int

POOLINGS = ("attentive", "mean")


def largest_divisor(dim: int, limit: int) -> int:
    """The largest number up to `limit` that divides `dim`."""
    return max(count for count in range(1, min(dim, limit) + 1) if dim % count == 0)


class EfficientProbing(nn.Module):
    """Attentive pooling by learned queries that meet the features as they are.

    Query q has its attention map over all patches, `softmax(q · x / sqrt(C))`: features are their own keys, there is no
    key projection. Each query pools its own slice of the projected values, C / num_queries channels; the slices side by
    side are the result. There is no output projection.

    Source: "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency"
    (https://arxiv.org/abs/2506.10178), with its published code's values of full width, scale and initialisation.

    Args:
        dim: Channels C of the features.
        num_queries: Queries; must divide `dim`.

    Raises:
        ValueError: `num_queries` does not divide `dim`.

    Example:
        >>> import torch
        >>> EfficientProbing(64, num_queries=8)(torch.rand(2, 49, 64)).shape
        torch.Size([2, 64])
    """

    def __init__(self, dim: int, num_queries: int = 32) -> None:
        super().__init__()
        check_int("dim", dim, 1)
        if check_int("num_queries", num_queries) < 1 or dim % num_queries:
            near = largest_divisor(dim, max(num_queries, 1))
            raise ValueError(f"num_queries={num_queries}: must divide dim={dim}, as {near} does")
        self.num_queries = num_queries
        self.queries = nn.Parameter(torch.randn(num_queries, dim) * 0.02)
        self.value = nn.Linear(dim, dim, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        """Attention maps (B, Q, N), each of sum 1 over the patches of features (B, N, C)."""
        return (self.queries @ x.mT * x.shape[2] ** -0.5).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool features (B, N, C) to (B, C)."""
        values = self.value(x).unflatten(2, (self.num_queries, -1)).transpose(1, 2)
        return (self.attention(x).unsqueeze(2) @ values).flatten(1)


class ProbeHead(nn.Module):
    """Pooling, batch norm without parameters, and a linear classifier.

    Args:
        channels: Channels C of the features.
        num_classes: Classes K.
        pooling: `"attentive"` for `EfficientProbing`, `"mean"` for the mean over the patches (a linear probe).
        num_queries: Of the attentive pooling; None for the largest number up to 32 that divides `channels`.

    Raises:
        ValueError: Another pooling, or `num_queries` does not divide `channels`.
    """

    def __init__(
        self, channels: int, num_classes: int, pooling: str = "attentive", num_queries: int | None = None
    ) -> None:
        super().__init__()
        check_int("channels", channels, 1)
        check_int("num_classes", num_classes, 1)
        check_choice("pooling", pooling, POOLINGS)
        queries = largest_divisor(channels, 32) if num_queries is None else num_queries
        self.config = dict(channels=channels, num_classes=num_classes, pooling=pooling, num_queries=queries)
        self.pool = EfficientProbing(channels, queries) if pooling == "attentive" else None
        self.norm = nn.BatchNorm1d(channels, affine=False, eps=1e-6)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of patch features (B, N, C) or maps (B, C, H, W)."""
        x = features.flatten(2).mT if features.ndim == 4 else features
        return self.classifier(self.norm(x.mean(1) if self.pool is None else self.pool(x)))
