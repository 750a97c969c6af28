"""Large-kernel attention as a plug-in: VAN's gate, https://arxiv.org/abs/2202.09741 (equations 2 and 3)."""

from torch import nn

from ..bodies.layers import LargeKernelGate
from ..contract.arguments import check_integers
from .plugin import Plugin

__all__ = ["LKA"]


class LKA(LargeKernelGate, Plugin):
    """`x * pointwise(dilated(local(x)))`: depth-wise 5x5, depth-wise 7x7 of dilation 3, point-wise; no sigmoid.

    Args:
        channels: of the map.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: for `channels` below 1.
    """

    published = ((r"conv0\.", "local."), (r"conv_spatial\.", "dilated."), (r"conv1\.", "pointwise."))

    def __init__(self, channels: int, device=None, dtype=None):
        check_integers(channels=channels)
        super().__init__(channels, device=device, dtype=dtype)

    def init_identity(self) -> None:
        """Makes the gate 1 everywhere: the only module here whose own parameters can say so."""
        nn.init.zeros_(self.pointwise.weight)
        if self.pointwise.bias is not None:
            nn.init.ones_(self.pointwise.bias)
