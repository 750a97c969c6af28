"""The least work an operator can do, and the time that a GPU needs for it at best (roofline)."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """Peak rates of a GPU.

    Attributes:
        name: as the vendor calls it.
        bandwidth: of its memory, bytes per second.
        flops: operations per second by dtype, dense.
    """

    name: str
    bandwidth: float
    flops: dict[torch.dtype, float]


# NVIDIA's data sheet for the SXM5 module, without sparsity; float32 outside of the tensor cores, as PyTorch multiplies
# by default.
H100 = Device(
    "NVIDIA H100 SXM5 80GB",
    3.35e12,
    {torch.bfloat16: 989.4e12, torch.float16: 989.4e12, torch.float32: 66.9e12},
)


@dataclass(frozen=True)
class Work:
    """What one call must do.

    Attributes:
        bytes: to and from the GPU's memory if every tensor moves once.
        flops: floating-point operations, a multiply-add counted as two; exponentials and the like are left out.
    """

    bytes: int
    flops: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.bytes + other.bytes, self.flops + other.flops)

    def seconds(self, dtype: torch.dtype, device: Device = H100) -> float:
        """The roofline: whichever takes longer at the device's peak rates, moving or computing."""
        return max(self.bytes / device.bandwidth, self.flops / device.flops[dtype])
