"""Trainings that diverge end, and spoil no checkpoint."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tools_helpers import DETECTOR, SEGMENTOR, error_line, run_training, write_config

from attnzoo.tools.common.errors import UserError


@HOOKS.register_module(force=True)
class SpoilHook(Hook):
    """Makes one weight NaN after an iteration, as a gradient that is not finite does."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            next(iter(runner.model.backbone.parameters())).data.view(-1)[0] = float("nan")


def test_a_loss_that_is_not_finite_ends_the_training(data, tmp_path, capsys):
    hook = "\ncustom_hooks = [dict(type='SpoilHook', iteration=6)]\n"
    config = write_config(tmp_path / "config.py", DETECTOR, data, epochs=4, extra=hook)
    assert run_training(config, tmp_path / "work") == 2
    said = error_line(capsys)
    assert "has diverged: loss_cls is nan at iteration 7 (epoch 2)" in said
    assert f"the last good checkpoint is {tmp_path / 'work' / 'epoch_1.pth'}" in said
    assert [path.name for path in (tmp_path / "work").glob("*.pth")] == ["epoch_1.pth"]


def test_weights_that_are_not_finite_replace_no_checkpoint(data, tmp_path, capsys):
    hook = "\ncustom_hooks = [dict(type='SpoilHook', iteration=8)]\n"
    config = write_config(tmp_path / "config.py", SEGMENTOR, data, epochs=2, extra=hook)
    assert run_training(config, tmp_path / "work") == 2
    said = error_line(capsys)
    assert "has diverged: weight backbone.model." in said and "is not finite at iteration 8" in said
    assert "epoch_1.pth" in said
    assert [path.name for path in (tmp_path / "work").glob("*.pth")] == ["epoch_1.pth"]
    assert run_training(config, tmp_path / "work", "--resume", "--cfg-options", "custom_hooks=[]") == 0


def test_a_rate_of_learning_that_is_too_high(data, tmp_path, capsys):
    config = write_config(tmp_path / "config.py", SEGMENTOR, data, epochs=4)
    optimizer = "optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e30))"
    with config.open("a") as file:
        file.write(f"\n{optimizer}\n")
    assert run_training(config, tmp_path / "work") == 2
    assert "the training has diverged: decode.loss_ce is" in error_line(capsys)


class Scalar:
    def __init__(self, value):
        self.data, self.value = [[value]], value

    def current(self):
        return self.value


@pytest.mark.parametrize(
    ("loss", "norm", "scaled", "stops"),
    [
        (1.0, float("inf"), True, False),
        (1.0, float("inf"), False, True),
        (float("inf"), 1.0, True, True),
        (1.0, 1.0, False, False),
    ],
    ids=["fp16 overflow", "gradient", "loss", "fine"],
)
def test_gradients_may_overflow_where_a_loss_scaler_answers_it(loss, norm, scaled, stops, tmp_path):
    from types import SimpleNamespace

    from attnzoo.tools.running.hooks.divergence import FiniteHook

    wrapper = SimpleNamespace(grad_name="grad_norm", clip_grad_kwargs={"max_norm": 1})
    if scaled:
        wrapper.loss_scaler = object()
    hub = SimpleNamespace(log_scalars={"train/grad_norm": Scalar(norm)})
    cfg = Config(dict(work_dir=str(tmp_path)))
    runner = SimpleNamespace(message_hub=hub, optim_wrapper=wrapper, iter=4, epoch=0, cfg=cfg)
    outputs = {"loss": torch.tensor(loss), "loss_a": torch.tensor(loss), "acc": torch.tensor(float("nan"))}
    if stops:
        with pytest.raises(UserError, match=r"(loss_a|grad_norm) is inf at iteration 5"):
            FiniteHook().after_train_iter(runner, 0, outputs=outputs)
    else:
        FiniteHook().after_train_iter(runner, 0, outputs=outputs)
