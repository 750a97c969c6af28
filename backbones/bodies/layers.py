"""Layers that several families share."""

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, register_notrace_function, register_notrace_module
from torch import nn

from ...kernels import depthwise_conv, large_kernel_attention, pointwise_conv
from ...kernels._derivatives import is_transformed
from ...kernels.tracing import is_exporting

# Tokens that `TokenMlp` computes at a time.
_STRIP = 512

# Leaves of FX graphs: they read sizes or devices.
register_notrace_function(depthwise_conv)
register_notrace_function(large_kernel_attention)
register_notrace_function(pointwise_conv)


def sizes_stay_free() -> bool:
    """Whether a graph is being recorded that shall serve other sizes: no branch may then be taken by a size.

    `torch.export`, the ONNX exporter and `torch.jit.trace` record one; `torch.compile` has guards, and FX and
    `torch.jit.script` keep the branches.
    """
    if torch.jit.is_scripting():
        return False
    else:
        return is_exporting() or torch.jit.is_tracing()


def larger_of(size: int, least: int) -> int:
    """The larger of both, where `size` may be a symbol of `torch.export` or a tensor of `torch.jit.trace`."""
    if torch.jit.is_scripting():
        return max(size, least)
    else:
        if isinstance(size, torch.Tensor):
            return size.clamp(min=least)
        return cast(int, torch.sym_max(size, least)) if is_exporting() else max(size, least)


@register_notrace_function
def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zero-pads a map at the right and the bottom, up to the next multiples.

    Args:
        x: (B, H, W, C).
        multiple: of both sides, in pixels.

    Returns:
        (B, H', W', C); `x` itself where it fits already.
    """
    height, width = x.shape[1], x.shape[2]
    # In this form, not as a remainder, a symbolic size stays one that an exporter can divide again.
    pad_h = (height + multiple - 1) // multiple * multiple - height
    pad_w = (width + multiple - 1) // multiple * multiple - width
    free = sizes_stay_free()
    # A branch on the size would bind a graph to the example's.
    if free or pad_h > 0 or pad_w > 0:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    return x


@register_notrace_function
def pad_to_least(x: torch.Tensor, least: int) -> torch.Tensor:
    """Zero-pads a map at the right and the bottom where a convolution would not find a single place on it.

    Args:
        x: (B, C, H, W).
        least: pixels that a side must have.

    Returns:
        (B, C, max(H, least), max(W, least)); `x` itself where it is large enough, and in an exported graph.
    """
    free = sizes_stay_free()
    if torch.jit.is_scripting():
        tracing = False
    else:
        tracing = torch.jit.is_tracing()
    if tracing or (not free and (x.shape[2] < least or x.shape[3] < least)):
        x = F.pad(x, (0, larger_of(least - x.shape[3], 0), 0, larger_of(least - x.shape[2], 0)))
    return x


@register_notrace_function
def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The map in channels_last; as it is under a transform of `torch.func`, since `vmap` knows of no memory format."""
    if torch.jit.is_scripting():
        return x.contiguous(memory_format=torch.channels_last)
    else:
        return x if is_transformed() else x.contiguous(memory_format=torch.channels_last)


@register_notrace_function
def crop(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The top left part of a map, undoing `pad_to_multiple`; (B, H, W, C) -> (B, height, width, C)."""
    x = x[:, :height, :width]
    free = sizes_stay_free()
    # Whether the part is contiguous depends on the size, and asking would bind an exported graph to the example's.
    return x.clone(memory_format=torch.contiguous_format) if free else x


@register_notrace_function
def resize_map(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resizing of a table of positions, `align_corners=False`, no antialiasing: the published dense rule.

    Args:
        x: (B, C, h, w).
        height: of the result.
        width: of the result.

    Returns:
        (B, C, height, width), in the memory format of `x`; equal to `x` where it has that size already.
    """
    free = sizes_stay_free()
    # A branch on the size would bind an exported graph to the example's.
    if not free and x.shape[2] == height and x.shape[3] == width:
        return x
    return F.interpolate(x, [height, width], mode="bilinear", align_corners=False)


class StridedConv(nn.Conv2d):
    """Convolution of patches, overlapping or not, of which even one pixel makes one."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int, stride: int, padding: int = 0, device=None, dtype=None):
        super().__init__(in_dim, dim, kernel_size, stride, padding, device=device, dtype=dtype)
        self.least = kernel_size - 2 * padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, (H + 2 * padding - kernel_size) // stride + 1, the same of W), at least 1."""
        return self._conv_forward(pad_to_least(x, self.least), self.weight, self.bias)


class ChannelsLastConv(StridedConv):
    """The first convolution: from it on maps stay in channels_last, the CPU's quicker format for depth-wise kernels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, (H + 2 * padding - kernel_size) // stride + 1, the same of W), at least 1."""
        x = channels_last(pad_to_least(x, self.least))
        return self._conv_forward(x, self.weight, self.bias)


class PointwiseConv2d(nn.Conv2d):
    """Convolution of kernel 1: a matrix product on a channels_last map; (B, C, H, W) -> (B, D, H, W)."""

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__(in_dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, H, W)."""
        return pointwise_conv(x, self.weight, self.bias)


class DepthwiseConv2d(nn.Conv2d):
    """Depth-wise convolution, stride 1 and "same" padding; (B, C, H, W) -> the same."""

    def __init__(self, dim: int, kernel_size: int | tuple[int, int], dilation: int = 1, device=None, dtype=None):
        rows, cols = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        super().__init__(
            dim,
            dim,
            (rows, cols),
            padding=(dilation * (rows // 2), dilation * (cols // 2)),
            dilation=dilation,
            groups=dim,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        return depthwise_conv(x, self.weight, self.bias, self.dilation[0])


class DepthwiseConv(DepthwiseConv2d):
    """Depth-wise convolution of a channels-last map, stride 1 and "same" padding; (B, H, W, C) -> the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        return depthwise_conv(x.permute(0, 3, 1, 2), self.weight, self.bias, self.dilation[0]).permute(0, 2, 3, 1)


class PatchConv(nn.Conv2d):
    """Convolution of disjoint patches, the image zero-padded right and bottom to whole ones.

    (B, C, H, W) -> (B, D, ceil(H / patch), ceil(W / patch)).
    """

    def __init__(self, in_chans: int, dim: int, patch: int, device=None, dtype=None):
        super().__init__(in_chans, dim, patch, stride=patch, device=device, dtype=dtype)
        self.patch = patch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, D, ceil(H / patch), ceil(W / patch))."""
        x = pad_to_multiple(x.permute(0, 2, 3, 1), self.patch).permute(0, 3, 1, 2)
        return self._conv_forward(x, self.weight, self.bias)


@register_notrace_module
class TokenMlp(Mlp):
    """The MLP of timm; on the CPU without gradients in strips of tokens, whose hidden channels stay in the cache."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> the same."""
        if torch.jit.is_scripting():
            return self._whole(x)
        else:
            traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
            if traced or torch.is_grad_enabled() or x.device.type != "cpu":
                return self._whole(x)
            strips = x.flatten(0, -2).split(_STRIP)
            return torch.cat([self._whole(strip) for strip in strips]).view(x.shape)

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(x))


class TokenBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm with a shortcut around: the block of PVT's, Swin's and CSwin's bodies.

    Args:
        dim: channels.
        attn: called as `attn(x, height, width)`, x (B, height * width, C) -> the same.
        mlp_ratio: hidden over outer channels of the MLP.
        proj_drop: dropout in the MLP.
        drop_path: stochastic depth of both branches.
        norm_eps: of both norms.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float = 4.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.mlp = TokenMlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        height, width = x.shape[2], x.shape[3]
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x).flatten(1, 2), height, width).unflatten(1, [height, width]))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


def init_weights(module: nn.Module) -> None:
    """Linear layers as vision transformers begin: truncated normal weights of deviation 0.02, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class LargeKernelGate(nn.Module):
    """VAN's gate: depth-wise 5x5, depth-wise 7x7 of dilation 3, point-wise; `large_kernel_attention`."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.local = DepthwiseConv2d(dim, 5, **dd)
        self.dilated = DepthwiseConv2d(dim, 7, dilation=3, **dd)
        self.pointwise = PointwiseConv2d(dim, dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        return large_kernel_attention(
            x,
            self.local.weight,
            self.local.bias,
            self.dilated.weight,
            self.dilated.bias,
            self.pointwise.weight,
            self.pointwise.bias,
            dilation=3,
        )
