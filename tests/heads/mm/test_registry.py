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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(model_name="van_b00"), ValueError, r"model_name='van_b00'.*did you mean van_b0"),
        (
            dict(model_name="resnet18.nope", depths=None, embed_dims=None),
            ValueError,
            r"no such pretrained tag; known are",
        ),
        (dict(model_name=["van_b0"]), TypeError, r"model_name=\['van_b0'\]: must be a string, got list"),
        (dict(out_indices=[0, 7]), ValueError, r"out_indices=\(0, 7\): 'van_b0' has 4 levels.*0 to 3"),
        (dict(out_indices=3), TypeError, r"out_indices=3: must be a sequence of whole numbers"),
        (dict(depth=[1, 1, 1, 1]), TypeError, r"model_name='van_b0' with \{.*'depth'"),
        (dict(embed_dims=[8, 16]), ValueError, r"model_name='van_b0' with \{.*'embed_dims': \[8, 16\]"),
        (dict(frozen_stages=9), ValueError, r"frozen_stages=9: allowed are -1 .* to 4"),
        (dict(stage_norms="bn"), ValueError, r"stage_norms='bn': allowed are None, 'layernorm2d'"),
        (dict(attention=dict(type="elaa")), ValueError, r"attention=.*elaa"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_error_in_a_config_names_the_argument_in_one_line(scope, change, error, message):
    with pytest.raises(error, match=message) as caught:
        mmengine.registry.MODELS.build(dict(BACKBONE, **change))
    assert "\n" not in str(caught.value)
