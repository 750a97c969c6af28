"""Train the model of a config with mmengine's Runner."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common.errors import UserError, warn
from .common.files import is_disk_error
from .config.classes import is_checkpoint_hook
from .config.loading import add_config_options, load_config, parse_options
from .running.work_dir import check, check_note, last_checkpoint, opened, resumable, run_folders

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

EPILOG = """\
examples:
  attnzoo train biformer/gfl_biformer_4e_digits
  attnzoo train my_config.py --cfg-options train_cfg.max_epochs=24 optim_wrapper.optimizer.lr=1e-4
  attnzoo train my_config.py --work-dir work/a --resume          go on from its last checkpoint
  attnzoo train my_config.py --work-dir work/a --overwrite       start again, and remove what it has left there
  torchrun --nproc-per-node 2 -m attnzoo.tools.train my_config.py --launcher pytorch
  torchrun --nproc-per-node 2 -m attnzoo.tools.train my_config.py --launcher pytorch --cfg-options \\
    strategy.type=FSDPStrategy strategy.blocks=True            parameters, gradients and optimizer in shards
"""


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument("--work-dir", metavar="DIR", help="where logs and checkpoints go (work_dirs/<config>)")
    add_config_options(parser)
    parser.add_argument("--launcher", choices=("none", "pytorch"), default="none", help="pytorch: run by torchrun")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", help="a config file, or the short name of a packaged one (attnzoo list --configs)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CKPT",
        help="go on from a checkpoint; alone, or as auto, from the last one in the work directory, if any",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the checkpoints and logs of an older training in the work directory, which is refused otherwise",
    )
    parser.add_argument("--seed", type=int, help="seed of everything drawn at random")
    parser.add_argument("--amp", action="store_true", help="mixed precision (needs a GPU)")
    add_run_arguments(parser)


def train(cfg: Config, overwrite: bool = False) -> Runner:
    """Train as the config says, after checking that its model builds and its data are there.

    Args:
        cfg: A config with `work_dir`. `resume=True` goes on from `load_from`, or else from the last checkpoint of
            the run in `work_dir`. It is changed: the checkpoint hook becomes the one that survives a kill.
        overwrite: Remove an older training in `work_dir` after the first iteration, of which nothing but its
            checkpoints, logs and kept configs.

    Returns:
        The Runner, with the trained model.

    Raises:
        UserError: if a check fails, an older or a running training in `work_dir` among them; nothing has been written
            then. Later if the training diverges, or the disk is full.
    """
    from .data.checks import check_data, check_scale
    from .running.channels import check_classes
    from .running.engine import ProgressHook, build_model, build_runner, check_optimizer, starting
    from .running.outputs import check_evaluator

    for field in ("work_dir", "train_dataloader", "train_cfg", "optim_wrapper"):
        if cfg.get(field) is None:
            raise UserError(f"{cfg.filename}: {field} is missing, nothing can be trained")
    check(cfg, overwrite)
    check_data(cfg, ("train", "val"))
    check_evaluator(cfg, "val", overwrite)
    model = build_model(cfg)
    check_scale(cfg, model, ("train", "val"))
    check_classes(cfg, model, ("train", "val"))
    check_optimizer(cfg)
    _add_hooks(cfg)
    # So that the config that is kept in the work directory names what it uses.
    if cfg.get("custom_imports") is None:
        cfg.custom_imports = dict(imports=[], allow_failed_imports=False)
    imports = cfg.custom_imports.imports
    imports.extend(name for name in ("attnzoo.heads", "attnzoo.tools.running.engine") if name not in imports)

    with opened(cfg, overwrite) as begin:
        progress = ProgressHook(begin)
        _set_start(cfg, model)
        try:
            with starting(cfg, progress):
                runner = build_runner(cfg, progress)
                runner.train()
        except OSError as error:
            if not is_disk_error(error):
                raise
            raise UserError(
                f"{error.filename or cfg.work_dir}: {error.strerror}: the training has stopped; the last complete "
                f"checkpoint is {last_checkpoint(*run_folders(cfg)) or 'none'}, from which --resume goes on"
            ) from error
    return runner


def _add_hooks(cfg: Config) -> None:
    # By assignment to the config, which makes dicts of its own kind of them.
    cfg.default_hooks = {"checkpoint": dict(type="CheckpointHook"), **(cfg.get("default_hooks") or {})}
    checkpoint = cfg.default_hooks.checkpoint
    if checkpoint is not None and is_checkpoint_hook(checkpoint.get("type")):
        checkpoint.type = "AtomicCheckpointHook"
    own = ("ReseedHook", "FiniteHook")
    others = [hook for hook in cfg.get("custom_hooks") or () if hook.get("type") not in own]
    cfg.custom_hooks = [*others, *(dict(type=name) for name in own)]


def _set_start(cfg: Config, model: Any) -> None:
    """Find the checkpoint to go on from, and check that it and other weights to start from can be used."""
    from .running.checkpoint import check_start, load_into

    if cfg.get("resume") and cfg.get("load_from") is None:
        content = None
        if not (found := list(resumable(*run_folders(cfg)))):
            check_note(cfg.work_dir)
        for path in found:
            try:
                content = load_into(model, path)
            except UserError as error:
                if path == found[-1] or _can_be_read(path):
                    raise
                warn(f"{error}; going on from the checkpoint before it")
                continue
            cfg.load_from = str(path)
            break
        cfg.resume = content is not None
    elif cfg.get("load_from") is None or re.match(r"(?!https?:)\S+://", str(cfg.load_from)):
        # Names of models that mmengine's own lists know are looked up there, when the run begins.
        return
    elif not cfg.get("resume"):
        check_start(model, cfg.load_from)
        return
    else:
        content = load_into(model, cfg.load_from)
    if cfg.get("resume") and content is not None:
        _check_state(cfg, content)
        _set_seed(cfg, content["meta"].get("seed"))


def _check_state(cfg: Config, content: dict[Any, Any]) -> None:
    """Check that a checkpoint holds the state of a training, at a place that this one has."""
    if not {"optimizer", "message_hub"} <= content.keys():
        raise UserError(f"{cfg.load_from}: holds weights but no state of a training run, nothing to resume")
    hub = content["message_hub"]
    parts = [hub.get(key) for key in ("log_scalars", "runtime_info", "resumed_keys")] if isinstance(hub, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{cfg.load_from}: message_hub is not as mmengine writes it: damaged")
    for key, name in (("epoch", "max_epochs"), ("iter", "max_iters")):
        value, most = content["meta"].get(key), cfg.train_cfg.get(name)
        # A loop by epochs knows its iterations only when the data are there.
        if type(value) is not int or not 0 <= value <= (2**31 if most is None else most):
            end = 2**31 if most is None else f"train_cfg.{name} ({most})"
            raise UserError(f"{cfg.load_from}: meta.{key} is {value!r:.60}, and must be a whole number from 0 to {end}")


def _set_seed(cfg: Config, seed: Any) -> None:
    """Give a resumed run the seed of its checkpoint from the first: mmengine's loaders would have another one."""
    if seed is None:
        return
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"{cfg.load_from}: meta.seed is {seed!r:.60}, and must be a whole number from 0 to {2**32 - 1}")
    randomness = cfg.get("randomness") or {}
    if randomness.get("seed") is None:
        cfg.randomness = {**randomness, "seed": seed}
    elif randomness["seed"] != seed:
        warn(
            f"{cfg.load_from}: was drawn with the seed {seed}, not {randomness['seed']}: the resumed run is not what "
            "the undisturbed one would have been"
        )


def _can_be_read(path: Path) -> bool:
    from .running.checkpoint import load_checkpoint

    try:
        load_checkpoint(path)
    except UserError:
        return False
    return True


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """Set `cfg.work_dir`: the option, or what the config says, or `work_dirs/<name of the config>`."""
    cfg.work_dir = work_dir or cfg.get("work_dir") or str(Path("work_dirs", Path(cfg.filename).stem))


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import torch

    cfg = load_config(args.config, parse_options(args.cfg_options))
    set_work_dir(cfg, args.work_dir)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if args.seed is not None:
        cfg.randomness = {**cfg.get("randomness", {}), "seed": args.seed}
    if args.amp:
        if not torch.cuda.is_available():
            raise UserError("--amp needs a CUDA device")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    from .running.engine import distributed

    with distributed(cfg, args.launcher):
        runner = train(cfg, args.overwrite)
        if runner.rank == 0:
            print(f"trained {runner.epoch} epochs, {runner.iter} iterations: {last_checkpoint(*run_folders(cfg))}")
    return 0


if __name__ == "__main__":
    from .cli import console

    console(["train", *sys.argv[1:]])
