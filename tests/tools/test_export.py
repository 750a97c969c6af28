"""`attnzoo export`: ONNX Runtime equals PyTorch at two sizes and two batch sizes, and nothing else is written."""

import json
import sys

import numpy as np
import pytest
import torch
from deploy_models import dense, images, lively, segmentor, two_stage
from mmengine.registry import MODELS
from mmseg.models.decode_heads import FPNHead
from torch.nn import functional as F

from attnzoo.heads.deploy import deploy
from attnzoo.tools.cli import main
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.exporting.comparison import TOLERANCES
from attnzoo.tools.exporting.export import export

onnxruntime = pytest.importorskip("onnxruntime")

SIZE = (96, 128)
FAST = {
    # Two levels, between which regions are shared out: the exporter's time grows with each.
    "mask_rcnn-van": lambda: two_stage("van", masks=True, levels=(0, 1)),
    "ham-mscan": lambda: segmentor("ham", "mscan"),
}
SLOW = {
    "mask_rcnn-van-all-levels": lambda: two_stage("van", masks=True),
    "uper-van": lambda: segmentor("uper", "van"),
    "gfl-biformer": lambda: dense("gfl", "biformer"),
    "retina-van": lambda: dense("retina", "van"),
    "fsaf-van": lambda: dense("fsaf", "van"),
    "atss-van": lambda: dense("atss", "van"),
    "fcos-van": lambda: dense("fcos", "van"),
    "rtmdet-van": lambda: dense("rtmdet", "van"),
    "gfl-mscan": lambda: dense("gfl", "mscan"),
    "faster_rcnn-biformer": lambda: two_stage("biformer", masks=False),
    "fpn-biformer": lambda: segmentor("fpn", "biformer"),
    "ham-mscan-padded": lambda: segmentor("ham", "mscan", test_cfg=dict(size_divisor=32)),
}


@MODELS.register_module(name="TestFrozenHead")
class FrozenHead(FPNHead):
    """Pools to a fixed size by a function, which the exporter unrolls for the traced size."""

    def forward(self, inputs):
        logits = super().forward(inputs)
        return logits + F.interpolate(F.adaptive_avg_pool2d(logits, 3), logits.shape[2:])


def small_segmentor():
    """Of a model of timm that traces in seconds."""
    cfg = segmentor("fpn", "van")
    cfg.model.backbone = dict(type="attnzoo.Backbone", model_name="test_resnet", out_indices=(1, 2, 3, 4))
    cfg.model.decode_head.in_channels = [32, 48, 192, 96]
    return cfg


def save(cfg, path, **meta):
    model = lively(cfg)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return model


@pytest.mark.long
@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_onnx_runtime_equals_pytorch(name, tmp_path):
    cfg = {**FAST, **SLOW}[name]()
    model = save(cfg, tmp_path / "model.pth")
    report = export(cfg, tmp_path / "model.pth", tmp_path / "model.onnx", size=SIZE)
    assert [check.shape for check in report.checks] == [(1, 3, 96, 128), (3, 3, 73, 81)]
    assert all(check.compared >= 15 for check in report.checks)
    assert report.inputs == {"images": ("batch", 3, "height", "width")}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.pth"]

    # Shapes that the command has not looked at.
    wrapper = deploy(model)
    session = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert tuple(output.name for output in session.get_outputs()) == wrapper.outputs
    for shape in ((2, 64, 160), (1, 101, 67)):
        batch = images(*shape, seed=5)
        with torch.no_grad():
            expected = [output.numpy() for output in wrapper(batch)]
        found = session.run(None, {"images": batch.numpy()})
        for output, one, other in zip(wrapper.outputs, expected, found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=TOLERANCES.get(output, 0), err_msg=output)


@pytest.mark.long
def test_command(tmp_path, capsys):
    cfg = small_segmentor()
    save(cfg, tmp_path / "model.pth", dataset_meta=dict(classes=("ground", "red", "blue")))
    cfg.custom_imports = dict(imports=["attnzoo.heads"])
    cfg.dump(tmp_path / "config.py")
    out = tmp_path / "new" / "model.onnx"
    code = main(
        ["export", str(tmp_path / "config.py"), str(tmp_path / "model.pth"), "--out", str(out), "--size", "64", "96"]
    )
    text = capsys.readouterr()
    assert code == 0, text.err
    assert "(batch, 3, height, width)" in text.out and "1 x 3 x 64 x 96" in text.out and "opset 20" in text.out
    assert [line.split(":")[0] for line in text.err.splitlines()] == ["export"] * 4, "the exporter is not quiet"
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    assert meta["channel_order"] == "RGB" and json.loads(meta["classes"]) == ["ground", "red", "blue"]


@pytest.mark.long
def test_model_that_keeps_the_traced_size_is_refused_and_may_be_static(tmp_path):
    cfg = small_segmentor()
    cfg.model.decode_head.type = "TestFrozenHead"
    save(cfg, tmp_path / "model.pth")
    out = tmp_path / "model.onnx"
    with pytest.raises(UserError, match="--static"):
        export(cfg, tmp_path / "model.pth", out, size=(64, 96))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]

    report = export(cfg, tmp_path / "model.pth", out, size=(64, 96), dynamic=False, opset=18)
    assert report.inputs == {"images": (1, 3, 64, 96)} and report.opset == 18
    assert [check.shape for check in report.checks] == [(1, 3, 64, 96)]
    assert report.size == out.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(out="model.pt"), "must end in .onnx"),
        (dict(opset=9), "--opset 9: allowed are 18 to 23"),
        (dict(size=(16, 64)), "at least 32"),
        (dict(size=(64, 10**7)), "at most 16384"),
        (dict(image="text.txt"), "not a readable image"),
        (dict(checkpoint="text.txt"), "not a checkpoint"),
        (dict(checkpoint="none.pth"), "no checkpoint"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no tensor, no picture")
    arguments = dict(checkpoint="text.txt", out="model.onnx", size=(64, 64)) | arguments
    with pytest.raises(UserError, match=message):
        export(small_segmentor(), **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


def test_unsupported_part_is_named(tmp_path):
    cfg = dense("gfl", "van")
    cfg.model.test_cfg.nms.type = "soft_nms"
    save(cfg, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"not exported: test_cfg nms .*soft_nms"):
        export(cfg, tmp_path / "model.pth", tmp_path / "model.onnx", size=SIZE)


def test_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code = main(["export", "config.py", "model.pth", "--out", str(tmp_path / "model.onnx")])
    assert code == 2
    assert "needs onnxscript: pip install 'attnzoo[onnx]'" in capsys.readouterr().err
