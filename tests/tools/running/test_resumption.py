"""The seed that a resumed run takes over."""

import pytest
from mmengine.config import Config

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.running.resumption import _set_seed


@pytest.mark.parametrize(
    ("own", "seed", "used", "said"),
    [
        ({}, 7, 7, None),
        (dict(randomness=dict(seed=None, deterministic=True)), 7, 7, None),
        (dict(randomness=dict(seed=7)), 7, 7, None),
        (dict(randomness=dict(seed=8)), 7, 8, "warning: a.pth: was drawn with the seed 7, not 8"),
        ({}, None, None, None),
        ({}, "7", None, "meta.seed is '7'"),
        ({}, 2**32, None, "meta.seed is 4294967296"),
    ],
)
def test_a_resumed_run_has_the_seed_of_its_checkpoint_from_the_first(capsys, own, seed, used, said):
    cfg = Config(dict(load_from="a.pth", **own))
    if used is None and said:
        with pytest.raises(UserError, match=said):
            _set_seed(cfg, seed)
        return
    _set_seed(cfg, seed)
    randomness = cfg.get("randomness", {})
    assert randomness.get("seed") == used
    assert randomness.get("deterministic") == own.get("randomness", {}).get("deterministic")
    told = capsys.readouterr().err
    assert said in told if said else not told
