"""The names of attnzoo from configs of mmdet and of mmseg."""

import mmdet.registry
import mmengine.registry
import mmseg.registry
import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope, init_default_scope

from attnzoo.heads import Backbone, LayerDecayOptimWrapperConstructor, LightHamHead

BACKBONE = dict(type="attnzoo.Backbone", model_name="van_b0", depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32))
CONFIG = """
custom_imports = dict(imports=["attnzoo.heads"])
default_scope = "{scope}"
backbone = dict(type="attnzoo.Backbone", model_name="van_b0", depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32))
head = dict(type="attnzoo.LightHamHead", in_channels=[16, 24, 32], in_index=[1, 2, 3], channels=8, num_classes=2,
            ham_channels=8, ham_kwargs=dict(MD_R=4))
optim_wrapper = dict(
    constructor="attnzoo.LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay=0.9),
    optimizer=dict(type="AdamW", lr=1e-3),
)
"""


@pytest.fixture(params=["mmdet", "mmseg"])
def scope(request):
    """A default scope, as mmengine's Runner sets it, and the registries of that library."""
    before = DefaultScope.get_current_instance()
    init_default_scope(request.param)
    yield request.param
    if before is not None:
        init_default_scope(before.scope_name)


@pytest.mark.parametrize("registry", [mmengine.registry, mmdet.registry, mmseg.registry], ids=lambda r: r.__name__)
def test_every_librarys_registry_builds_the_backbone(scope, registry):
    assert isinstance(registry.MODELS.build(BACKBONE), Backbone)


def test_a_config_file_needs_only_the_custom_import(scope, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.format(scope=scope))
    config = Config.fromfile(tmp_path / "config.py")
    models = {"mmdet": mmdet, "mmseg": mmseg}[scope].registry.MODELS
    backbone = models.build(config.backbone)
    assert isinstance(backbone, Backbone)
    assert isinstance(models.build(config.head), LightHamHead)
    optim_wrapper = build_optim_wrapper(backbone, config.optim_wrapper)
    assert len({group["lr"] for group in optim_wrapper.optimizer.param_groups}) > 4


def test_the_names_stay_in_their_own_scope():
    assert mmengine.registry.MODELS.get("attnzoo.LightHamHead") is LightHamHead
    assert mmseg.registry.MODELS.get("LightHamHead") is not LightHamHead
    constructors = mmengine.registry.OPTIM_WRAPPER_CONSTRUCTORS
    assert constructors.get("attnzoo.LayerDecayOptimWrapperConstructor") is LayerDecayOptimWrapperConstructor


def test_an_error_in_a_config_names_the_argument(scope):
    with pytest.raises(ValueError, match=r"model_name='van_b00'.*did you mean van_b0"):
        mmengine.registry.MODELS.build(dict(BACKBONE, model_name="van_b00"))
