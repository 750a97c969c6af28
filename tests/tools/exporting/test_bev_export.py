"""BEV detectors as ONNX files, by the command: streams, batches, calibrations and what the file tells."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

import attnzoo.heads  # noqa: F401  registers the models
from attnzoo.heads.deploy import deploy
from attnzoo.tools import cli
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.exporting.comparison import compare
from attnzoo.tools.exporting.export import export
from attnzoo.tools.exporting.pictures import pipeline_size
from attnzoo.tools.exporting.trials import trial

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

RANGE = (-20.0, -16.0, -5.0, 20.0, 16.0, 3.0)
DIMS, ROWS, COLUMNS, CAMERAS = 16, 3, 4, ["CAM_BACK", "CAM_FRONT"]


@MODELS.register_module(name="TestPatches")
class Patches(torch.nn.Module):
    """A backbone that the exporter is soon through with."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 8, 8, 8)

    def forward(self, images):
        return (self.embed(images),)


def config(lifting: str, root: str) -> Config:
    """A small detector of two cameras, whose data are pictures of 120 x 180 pixels, halved.

    It has a head for boxes with "dfa3d" alone: exports take most of the time of these tests.
    """
    model = dict(
        type="attnzoo.BEVDetector",
        data_preprocessor=dict(type="attnzoo.BEVDataPreprocessor", bgr_to_rgb=True, pad_size_divisor=32),
        backbone=dict(type="TestPatches"),
        neck=dict(type="mmdet.FPN", in_channels=[8], out_channels=DIMS, num_outs=1),
        bev_encoder=dict(
            type="attnzoo.BEVEncoder", embed_dims=DIMS, rows=ROWS, columns=COLUMNS, point_range=RANGE, num_layers=1,
            num_cameras=2, num_levels=1, num_heads=2, num_points=2, num_pillar_points=2, num_temporal_points=2,
            feedforward_channels=16, lifting=lifting, depth_range=(1.0, 25.0),
        ),
        segmentation_head=dict(
            type="attnzoo.BEVSegmentationHead", num_classes=2, in_channels=DIMS, channels=8, num_convs=0
        ),
    )  # fmt: skip
    if lifting == "dfa3d":
        model["detection_head"] = dict(
            type="attnzoo.BEVDetectionHead", num_classes=2, embed_dims=DIMS, num_query=6, num_layers=1, num_heads=2,
            num_points=2, feedforward_channels=16, num_fcs=1, point_range=RANGE,
            coder=dict(center_range=(-9.0, -9.0, -5.0, 9.0, 9.0, 3.0), max_num=8),
        )  # fmt: skip
        model["depth_head"] = dict(
            type="attnzoo.BEVDepthHead", in_channels=DIMS, mid_channels=8, level=0, stride=8, dilations=(1,),
            bins=dict(near=1.0, far=25.0, step=2.0, groups=(1, 2)),
        )  # fmt: skip
    steps = [
        dict(type="attnzoo.LoadMultiViewImages"),
        dict(type="attnzoo.ResizeMultiViewImages", scale=0.5),
        dict(type="attnzoo.DrawBEVMap", classes=["vehicle", "drivable_area"], rows=ROWS, columns=COLUMNS),
        dict(type="attnzoo.PackBEVInputs"),
    ]
    dataset = dict(type="attnzoo.NuScenesDataset", data_root=root, cameras=CAMERAS, pipeline=steps)
    return Config(
        dict(
            default_scope="mmengine",
            custom_imports=dict(imports=["attnzoo.heads"], allow_failed_imports=False),
            model=model,
            test_dataloader=dict(dataset=dataset),
        )
    )


def lively(cfg: Config) -> torch.nn.Module:
    """The model of a config with weights that make its results differ from place to place."""
    init_default_scope("mmengine")
    torch.manual_seed(1)
    model = MODELS.build(cfg.model).eval()
    for part in (model.neck, model.bev_encoder, model.segmentation_head, model.detection_head):
        for parameter in () if part is None else part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


class Exported(NamedTuple):
    """A model, the config of it, and the file that the command wrote."""

    lifting: str
    cfg: Config
    model: torch.nn.Module
    path: Path


@pytest.fixture(scope="module", params=["2d", "dfa3d"])
def exported(request, tmp_path_factory):
    if request.param == "dfa3d" and not has_deformable_convolution():
        pytest.skip("this ONNX Runtime has no DeformConv for CPUs, which the depth head needs")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bev")
    cfg = config(request.param, str(folder))
    model = lively(cfg)
    meta = dict(dataset_meta=dict(classes=("car", "bus")))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / "model.pth")
    picture(folder)
    cfg.dump(folder / "config.py")
    out = folder / "new" / "model.onnx"
    assert cli.main(["export", str(folder / "config.py"), str(folder / "model.pth"), "--out", str(out)]) == 0
    return Exported(request.param, cfg, model, out)


def has_deformable_convolution() -> bool:
    """Whether ONNX Runtime computes the standard operator DeformConv, which older ones do not on CPUs."""
    shapes = {"x": (1, 1, 3, 3), "w": (1, 1, 1, 1), "offset": (1, 2, 3, 3), "y": (1, 1, 3, 3)}
    values = {name: onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()}
    node = onnx.helper.make_node("DeformConv", ["x", "w", "offset"], ["y"], kernel_shape=[1, 1])
    graph = onnx.helper.make_graph([node], "graph", [values[name] for name in ("x", "w", "offset")], [values["y"]])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has an error class of its own for each status
        assert "DeformConv" in str(error)
        return False
    return True


def picture(root: Path) -> None:
    """One picture of the first camera."""
    folder = root / "samples" / CAMERAS[0]
    folder.mkdir(parents=True)
    Image.new("RGB", (180, 120)).save(folder / "a.jpg")


def session_of(exported: Exported) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])


@pytest.mark.long
def test_streams_equal_pytorch_at_shapes_that_the_command_has_not_seen(exported):
    wrapper, session = deploy(exported.model), session_of(exported)
    assert tuple(node.name for node in session.get_inputs()) == tuple(wrapper.inputs)
    assert tuple(node.name for node in session.get_outputs()) == wrapper.outputs
    for batch, size in ((2, (60, 90)), (4, (101, 67))):
        expected = found = None
        for frame in trial(wrapper, batch, size, None, seed=50 + batch):
            given = dict(frame)
            if expected is not None:
                given["history"] = torch.from_numpy(expected["next_history"])
                frame["history"] = torch.from_numpy(found["next_history"])
            with torch.no_grad():
                expected = dict(zip(wrapper.outputs, (x.numpy() for x in wrapper(**given)), strict=True))
            outputs = session.run(None, {name: x.numpy() for name, x in frame.items()})
            found = dict(zip(wrapper.outputs, outputs, strict=True))
            errors, compared, differ = compare(expected, found)
            assert not differ and compared >= batch * 3, errors
            assert max(errors.values()) < 1e-4


@pytest.mark.long
def test_history_calibration_and_motion_count_where_they_should(exported):
    wrapper, session = deploy(exported.model), session_of(exported)
    first, second = trial(wrapper, 2, (60, 90), None, seed=7)
    assert second["has_history"].tolist() == [True, False]

    def maps(**changed) -> np.ndarray:
        given = {name: x.numpy() for name, x in (second | changed).items()}
        return dict(zip(wrapper.outputs, session.run(None, given), strict=True))["next_history"]

    plain = maps()
    for name in ("history", "can_bus"):
        # Of the sample without history no number of the history counts, nor how far it moved.
        other = torch.full_like(second["history"], 3) if name == "history" else second["can_bus"].clone()
        other[..., :2] += 2.5
        difference = np.abs(maps(**{name: other}) - plain).max((1, 2))
        assert difference[0] > 1e-3 and difference[1] == 0, name
    for name in ("images", "lidar2img"):
        assert (np.abs(maps(**{name: first[name]}) - plain).max((1, 2)) > 1e-3).all(), name


@pytest.mark.long
def test_the_file_has_standard_operators_and_tells_what_a_user_must_know(exported):
    file = onnx.load(exported.path)
    assert {node.domain for node in file.graph.node} <= {"", "ai.onnx"} and not file.functions
    shapes = {node.name: tuple(node.shape) for node in session_of(exported).get_inputs()}
    assert shapes == {
        "images": ("batch", 2, 3, "height", "width"), "lidar2img": ("batch", 2, 4, 4), "can_bus": ("batch", 18),
        "history": ("batch", ROWS * COLUMNS, DIMS), "has_history": ("batch",),
    }  # fmt: skip
    told = {entry.key: entry.value for entry in file.metadata_props}
    assert told["channel_order"] == "RGB"
    facts = {name: json.loads(told[name]) for name in told if name != "channel_order"}
    assert facts["cameras"] == CAMERAS and facts["classes"] == ["car", "bus"]
    assert facts["map_classes"] == ["vehicle", "drivable_area"]
    assert facts["point_range"] == list(RANGE) and facts["bev_size"] == [ROWS, COLUMNS]
    outputs = ["bev_map", "next_history"] if exported.lifting == "2d" else list(deploy(exported.model).outputs)
    assert list(facts["meaning"]) == [*shapes, *outputs] and len(outputs) == (2 if exported.lifting == "2d" else 5)


def test_the_size_is_that_of_the_cameras_pictures_behind_the_pipeline(tmp_path):
    cfg = config("2d", str(tmp_path))
    with pytest.raises(UserError, match=r"CAM_BACK: has no picture to take the size from; give it by --size H W"):
        pipeline_size(cfg)
    picture(tmp_path)
    assert pipeline_size(cfg) == (60, 90)
    cfg.test_dataloader.dataset.pipeline[1].scale = "half"
    with pytest.raises(UserError, match=r"scale of attnzoo\.ResizeMultiViewImages: a number above 0"):
        pipeline_size(cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(cameras=["CAM_BACK"]), r"1 cameras \(\['CAM_BACK'\]\), but model.bev_encoder.num_cameras=2"),
        (dict(cameras="CAM_BACK"), "dataset.cameras: a list of names is needed, got str"),
        (dict(classes=["vehicle"]), r"1 map_classes .*but model.segmentation_head.num_classes=2"),
        (dict(depth=dict(type="attnzoo.PointDepth", bins=dict(near=1.0, far=25.0, step=2.0), strides=(8,))),
         "not exported: depth head PointDepth has no traceable form; allowed: BEVDepthHead"),
    ],
    ids=["number", "names", "classes", "depth"],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, message, tmp_path):
    cfg = config("dfa3d" if "depth" in change else "2d", str(tmp_path))
    dataset = cfg.test_dataloader.dataset
    dataset.cameras = change.get("cameras", dataset.cameras)
    dataset.pipeline[2].classes = change.get("classes", dataset.pipeline[2].classes)
    if "depth" in change:
        cfg.model.depth_head = change["depth"]
    torch.save(dict(state_dict=lively(cfg).state_dict()), tmp_path / "model.pth")
    with pytest.raises(UserError, match=message):
        export(cfg, tmp_path / "model.pth", tmp_path / "model.onnx", size=(60, 90))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]
