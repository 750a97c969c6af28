"""Checkpoints evaluated on the test data of a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..common.errors import UserError
from ..common.files import naming
from ..common.outputs import check_outputs
from ..config.inputs import data_paths
from ..data.checks import check_data, check_scale
from .batches import end_workers
from .checkpoint import load_into
from .class_counts import check_class_counts
from .engine import ProgressHook, build_model, build_runner, starting
from .metrics import check_evaluator

if TYPE_CHECKING:
    from mmengine.config import Config


def evaluate(cfg: Config, checkpoint: str, overwrite: bool = False) -> dict[str, float]:
    """Evaluate a checkpoint on `cfg.test_dataloader` by `cfg.test_evaluator`.

    Args:
        cfg: A config with `work_dir`, where the log goes.
        checkpoint: A file that fits the model exactly.
        overwrite: Whether the metrics may replace files with their predictions.

    Returns:
        The metrics by name, e.g. `coco/bbox_mAP_50` (fraction) or `mIoU` (percent), as the metric defines them.

    Raises:
        UserError: if the data, the config or the checkpoint are not what they should be.
    """
    for field in ("work_dir", "test_dataloader", "test_cfg", "test_evaluator"):
        if cfg.get(field) is None:
            raise UserError(f"{cfg.filename}: {field} is missing, nothing can be tested")
    check_outputs([cfg.work_dir], data_paths(cfg), folders=True)
    check_data(cfg, ("test",))
    check_evaluator(cfg, "test", overwrite, [checkpoint])
    model = build_model(cfg)
    check_scale(cfg, model, ("test",))
    check_class_counts(cfg, model, ("test",))
    load_into(model, checkpoint)

    cfg.load_from, cfg.resume = None, False
    with naming(cfg.work_dir):
        progress = ProgressHook()
        with starting(cfg, progress):
            runner = build_runner(cfg, progress)
            load_into(getattr(runner.model, "module", runner.model), checkpoint)
            try:
                metrics = runner.test()
            finally:
                end_workers(runner)
    return {name: float(value) for name, value in metrics.items()}
