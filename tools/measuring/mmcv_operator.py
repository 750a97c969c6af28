"""mmcv's own CUDA source of deformable attention, compiled where it is measured: its wheels bring it, uncompiled."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of the environment: the compiled file, which every process of a measurement loads.
COMPILED = "ATTNZOO_BENCH_MMCV"
_NAME = "mmcv_deformable_attention"
_BINDING = """
#include <torch/extension.h>

at::Tensor ms_deform_attn_cuda_forward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                       const at::Tensor&, const int);
void ms_deform_attn_cuda_backward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                  const at::Tensor&, const at::Tensor&, at::Tensor&, at::Tensor&, at::Tensor&,
                                  const int);

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &ms_deform_attn_cuda_forward);
  module.def("backward", &ms_deform_attn_cuda_backward);
}
"""


def installed_source() -> Path | None:
    """The folder `ops/csrc` of an installed mmcv, None without one."""
    found = importlib.util.find_spec("mmcv")
    if found is None or not found.origin:
        return None
    folder = Path(found.origin).parent / "ops" / "csrc"
    return folder if folder.is_dir() else None


def compile_source(source: Path, to: Path) -> Path:
    """Compiles the operator with the CUDA compiler of this machine.

    Args:
        source: mmcv's `ops/csrc`.
        to: an empty folder, which is created.

    Returns:
        The compiled file.

    Raises:
        RuntimeError: where there is no compiler, or it fails.
        OSError: likewise.
    """
    from torch.utils import cpp_extension

    to.mkdir(parents=True)
    binding = to / "binding.cpp"
    binding.write_text(_BINDING)
    cpp_extension.load(
        _NAME,
        [str(binding), str(source / "pytorch" / "cuda" / "ms_deform_attn_cuda.cu")],
        extra_include_paths=[str(source / "common"), str(source / "common" / "cuda")],
        extra_cflags=["-O2"],
        # Without them half precision has no operators, which the source uses.
        extra_cuda_cflags=[
            "-O3",
            *(f"-U__CUDA_NO_HALF{name}__" for name in ("_OPERATORS", "_CONVERSIONS", "2_OPERATORS")),
        ],
        build_directory=str(to),
        is_python_module=False,
    )
    return to / f"{_NAME}.so"


def compiled() -> Callable[..., Any] | None:
    """The operator that was compiled, None if there is none: value, shapes, starts, places and weights -> result."""
    path = os.environ.get(COMPILED)
    if not path or not Path(path).is_file():
        return None
    import torch

    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Operator(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value, shapes, starts, places, weights):
            ctx.save_for_backward(value, shapes, starts, places, weights)
            return module.forward(value, shapes, starts, places, weights, _STEP)

        @staticmethod
        def backward(ctx: Any, grad):
            value, _, _, places, weights = ctx.saved_tensors
            grads = [torch.zeros_like(x) for x in (value, places, weights)]
            module.backward(*ctx.saved_tensors, grad.contiguous(), *grads, _STEP)
            return grads[0], None, None, grads[1], grads[2]

    return Operator.apply


# Images at a time; it must divide the batch.
_STEP = 1
