"""Checkpoints that survive a kill at any moment."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader

from ...common.files import atomic_path
from ..work_dir import checkpoint_folder, own_checkpoint, step_of
from .divergence import diverged, is_finite, plain_names


@register_backend("attnzoo", force=True)
class AtomicBackend(LocalBackend):
    """Local files that are written under a temporary name and moved into place; only checkpoints are removed."""

    def __init__(self) -> None:
        self._doomed: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write `obj` to `filepath`."""
        with atomic_path(filepath) as temporary:
            temporary.write_bytes(obj)

    def remove(self, filepath: str | Path) -> None:
        """Remove a checkpoint, or note it inside `removing_last`; what is none stays."""
        path = own_checkpoint(Path(filepath).parent, Path(filepath).name)
        if path is None:
            return
        if self._doomed is None:
            super().remove(path)
        else:
            self._doomed.append(str(path))

    def rmtree(self, dir_path: str | Path) -> None:
        """Leave the folder: no checkpoint of this backend is one."""

    def doomed(self) -> list[str]:
        """Names of the files whose removal is held back."""
        return [Path(path).name for path in self._doomed or ()]

    @contextmanager
    def removing_last(self) -> Iterator[None]:
        """Hold removals back until the outermost such block has ended."""
        if self._doomed is not None:
            yield
            return
        doomed: list[str] = []
        self._doomed = doomed
        try:
            yield
        finally:
            self._doomed = None
        for path in doomed:
            self.remove(path)


@HOOKS.register_module(force=True)
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, safe against a kill at any moment.

    mmengine writes in place and removes the old file first; here a checkpoint appears complete or not at all, and the
    old one goes after the new one and `last_checkpoint` stand. A checkpoint names the files that it supersedes, so that
    a resumed run removes what the killed one did not come to. Weights that are not finite are not written.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Storage that is not a folder, and what the user has chosen for it, stay mmengine's.
        chosen = (kwargs.get("backend_args") or {}).get("backend", "local")
        if "://" not in str(kwargs.get("out_dir")) and chosen == "local" and not kwargs.get("file_client_args"):
            kwargs["backend_args"] = {"backend": "attnzoo"}
        super().__init__(**kwargs)
        self._superseded: list[str] = []
        self._position: dict[str, int] | None = None
        self._never_finite: set[str] = set()

    def _removing_last(self) -> AbstractContextManager[None]:
        # A remote backend of the user's own has no such block.
        return self.file_backend.removing_last() if isinstance(self.file_backend, AtomicBackend) else nullcontext()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what the checkpoint has superseded."""
        names = checkpoint.get("superseded")
        self._superseded = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def before_train(self, runner: Runner) -> None:
        """Go on in the folder of a resumed run where its kill has interrupted it, and touch no other folder."""
        atomic = (self.backend_args or {}).get("backend") == "attnzoo"
        if runner._resume and atomic:
            self._forget_strangers(runner)
        super().before_train(runner)
        buffers = plain_names(runner.model.named_buffers())
        self._never_finite = {name for name, buffer in buffers.items() if not is_finite(buffer)}
        if not isinstance(self.file_backend, AtomicBackend):
            return
        folder, start = Path(self.out_dir), self._start(runner)
        if start is None or not atomic:
            return
        self.last_ckpt = str(start)
        if is_main_process():
            for name in self._superseded:
                path = own_checkpoint(folder, name)
                if path is not None and path.name != start.name:
                    path.unlink()

    def _forget_strangers(self, runner: Runner) -> None:
        """Keep of the names in a resumed checkpoint those of checkpoints in the folder: these alone may be removed."""
        folder, start, known = checkpoint_folder(runner.cfg), self._start(runner), runner.message_hub.runtime_info
        for key in [key for key in known if key == "best_ckpt" or key.startswith("best_ckpt_")]:
            # By its name alone, as the folder may have been moved.
            path = own_checkpoint(folder, Path(name).name) if isinstance(name := known[key], str) else None
            known[key] = None if path is None else str(path)
        ids, step = known.pop("keep_ckpt_ids", None), None if start is None else step_of(start)
        if step is not None and isinstance(ids, list) and all(type(each) is int and each >= 0 for each in ids):
            # The one that is resumed is the last to go.
            known["keep_ckpt_ids"] = sorted({each for each in ids if each <= step})

    @staticmethod
    def _start(runner: Runner) -> Path | None:
        """The checkpoint that is resumed, if it stands in the folder of this run."""
        if not (runner._resume and runner._load_from):
            return None
        folder, start = checkpoint_folder(runner.cfg), Path(runner._load_from)
        return folder / start.name if start.resolve().parent == folder.resolve() else None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with self._removing_last(), self._at(meta):
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._removing_last(), self._at({"epoch": runner.epoch, "iter": runner.iter}):
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _at(self, meta: dict) -> Iterator[None]:
        before, self._position = self._position, {key: meta[key] for key in ("epoch", "iter")}
        try:
            yield
        finally:
            self._position = before

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and complete what mmengine writes.

        Raises:
            UserError: naming the first of the weights that is not finite.
        """
        for key in ("state_dict", "ema_state_dict"):
            for name, value in plain_names(checkpoint.get(key, {}).items()).items():
                if name not in self._never_finite and not is_finite(value):
                    iteration = self._position["iter"] if self._position else runner.iter
                    raise diverged(runner, f"weight {name} is not finite", iteration)
        if self._position is not None:
            # FlexibleRunner counts one epoch too many where a checkpoint is written again after a validation.
            checkpoint["meta"].update(self._position)
        if isinstance(self.file_backend, AtomicBackend):
            checkpoint["superseded"] = self.file_backend.doomed()

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str | None) -> None:
        # mmengine's own writes in place, and fails where a metric has never had a best.
        if ckpt_path is None:
            return
        checkpoint = CheckpointLoader.load_checkpoint(str(ckpt_path), "cpu")
        buffer = io.BytesIO()
        torch.save({key: value for key, value in checkpoint.items() if key in self.published_keys}, buffer)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        path = f"{os.path.splitext(ckpt_path)[0]}-{digest[:8]}.pth"
        self.file_backend.put(buffer.getvalue(), path)
        runner.logger.info(f"{ckpt_path} is published as {path}, with {', '.join(self.published_keys)}")
