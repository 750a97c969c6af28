"""States of optimizers that a checkpoint brings."""

import copy
import inspect

import pytest
import torch
from mmengine.optim.optimizer.builder import TORCH_OPTIMIZERS

from attnzoo.tools.running.optimizer_state import wrong_state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state["param_groups"][0].pop("betas"), "param_groups[0].betas is None"),
        (lambda state: state["state"][0].update(exp_avg=torch.zeros(2, 3)), "exp_avg is of shape (2, 3)"),
        (lambda state: state["state"][3].pop("exp_avg"), "not all parameters have exp_avg"),
        (lambda state: state["state"][0].update(step=torch.zeros(2, 3)), "step is tensor("),
        (lambda state: None, None),
    ],
)
def test_what_cannot_be_the_state_of_an_optimizer(change, said):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    state, before = copy.deepcopy(optimizer.state_dict()), [dict(group) for group in optimizer.param_groups]
    change(state)
    optimizer.load_state_dict(state)
    told = wrong_state(optimizer, before)
    assert told is None if said is None else said in told


class OwnOptimizer(torch.optim.Optimizer):
    """Keeps of matrices what it does not keep of vectors, under a name of torch's but in no parameter's shape."""

    def __init__(self, params, lr, limit=float("inf"), flag=True):
        super().__init__(params, dict(lr=lr, limit=limit, flag=flag))

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["exp_avg" if parameter.dim() > 1 else "mine"] = parameter.grad.mean()


# But for those that want sparse gradients, or a closure.
OPTIMIZERS = [vars(torch.optim)[name] for name in TORCH_OPTIMIZERS if name not in ("SparseAdam", "LBFGS", "Optimizer")]


@pytest.mark.parametrize("kind", [OwnOptimizer, *OPTIMIZERS])
def test_every_optimizer_can_be_resumed(kind):
    def made(**options):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        names = [name for name in options if name in inspect.signature(kind).parameters]
        matrices = kind is getattr(torch.optim, "Muon", None)
        parameters = [value for value in model.parameters() if value.dim() == 2 or not matrices]
        return model, kind(parameters, lr=1e-3, **{name: options[name] for name in names})

    model, optimizer = made(flag=None)
    model(torch.rand(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    _, resumed = made(foreach=False)
    before = [dict(group) for group in resumed.param_groups]
    resumed.load_state_dict(optimizer.state_dict())
    assert wrong_state(resumed, before) is None
    resumed.param_groups[0]["lr"] = None
    assert "param_groups[0].lr is None" in wrong_state(resumed, before)
