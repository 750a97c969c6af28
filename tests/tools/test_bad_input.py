"""What a user can get wrong: one line that says what, exit code 2, and not a file written or changed."""

import interpreters
import pytest
import torch
from PIL import Image
from tools_helpers import ENVIRONMENT, attnzoo, listing, refused

from attnzoo.tools import cli
from attnzoo.tools.running.checkpoint import load_checkpoint


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "no command 'trian'; did you mean train?"),
        (["info", "van_b9"], "no model 'van_b9'; did you mean van_b"),
        (["info", "biformer-tiny"], "did you mean biformer_tiny"),
        (["info", "resnet_18"], "did you mean resnet18"),
        (["list", "van_x*"], "no model matches 'van_x*'"),
        (["train", "absent.py"], "no config 'absent.py'"),
        (["train", "detector.py", "--cfg-options", "lr"], "'lr' is not of the form key=value"),
        (["train", "detector.py", "--cfg-options", "model.type=RetinaNot"], "RetinaNot"),
        (["train", "detector.py", "--cfg-options", "model.backbone.model_name=van_b9"], "van_b9"),
        (["train", "detector.py", "--cfg-options", "train_cfg.type=NoLoop"], "NoLoop"),
        (["train", "detector.py", "--cfg-options", "optim_wrapper.optimizer.type=Adamant"], "Adamant"),
        (["train", "detector.py", "--cfg-options", "train_dataloader=None"], "train_dataloader is missing"),
        (["train", "detector.py", "--resume", "absent.pth"], "no checkpoint 'absent.pth'"),
        (["test", "detector.py", "absent.pth"], "no checkpoint 'absent.pth'"),
        (["predict", "detector.py", "absent.pth", "data/images"], "no checkpoint 'absent.pth'"),
        (["predict", "detector.py", "absent.pth", "absent.jpg"], "no image 'absent.jpg'"),
        (["predict", "detector.py", "absent.pth", "."], "no images in ."),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_wrong_names(place, capsys, arguments, expected):
    assert expected in refused(capsys, *arguments, folder=place)


@pytest.mark.parametrize("command", [["train"], ["train", "a.py", "--lunch"], ["train", "a.py", "--launch", "pytorch"]])
def test_wrong_arguments_exit_with_2(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 2
    assert "usage: attnzoo train" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["mmengine", "mmcv", "mmdet"])
def test_missing_libraries_are_named_with_the_extra(place, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from attnzoo.tools.cli import main\n"
        "assert main(['list', 'van_b0']) == main(['info', 'van_b0']) == 0\n"
        "sys.exit(main(['train', 'detector.py']))"
    )
    before = listing(place)
    done = interpreters.run(code, env=ENVIRONMENT)
    assert done.returncode == 2, done.stderr
    assert f"needs {missing}" in done.stderr
    assert "pip install 'attnzoo[mm]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert listing(place) == before


@pytest.mark.long
def test_an_error_in_a_process_of_its_own(place):
    done = attnzoo("train", "absent.py", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("attnzoo: error: no config 'absent.py'")


@pytest.mark.parametrize("content", ["text", "half", "empty"])
def test_an_image_that_is_not_one(trained, place, capsys, content):
    config, checkpoint = trained["detector"]
    bad = place / "data" / "images" / "bad.jpg"
    whole = (place / "data" / "images" / "0.jpg").read_bytes()
    bad.write_bytes({"text": b"not an image", "half": whole[: len(whole) // 2], "empty": b""}[content])
    message = refused(capsys, "predict", config, checkpoint, "data/images", folder=place)
    assert "bad.jpg: not an image that can be read" in message


@pytest.mark.parametrize(
    ("config", "option", "expected"),
    [
        ("detector", "model.backbone.model_name=resnet_18", ["model.backbone: ", "did you mean", "resnet18"]),
        ("detector", "model.backbone.out_indices=(2,7)", ["model.backbone: ", "(2, 7)", "from 0 to 4 are allowed"]),
        ("detector", "model.neck.in_channels=[48,96]", ["model.neck.in_channels=[48, 96]: allowed is [48, 192]"]),
        ("detector", "model.bbox_head.in_channels=32", ["model.bbox_head.in_channels=32: allowed is 16", "model.neck"]),
        (
            "segmentor",
            "model.decode_head.in_channels=[32,64]",
            ["model.decode_head.in_channels", "allowed is [32, 48]"],
        ),
        ("segmentor", "model.decode_head.in_index=[0,5]", ["model.decode_head.in_index", "0 to 1 are allowed"]),
        ("detector", "model.bbox_head.num_classes=1", ["bbox_head (RetinaHead) has num_classes=1", "has 2 classes"]),
    ],
)
def test_a_model_that_does_not_fit(place, capsys, config, option, expected):
    message = refused(capsys, "train", f"{config}.py", "--cfg-options", option, folder=place)
    assert all(part in message for part in [f"{config}.py: ", *expected])


def test_unwritable_folder_leaves_nothing(trained, place, capsys):
    config, checkpoint = trained["detector"]
    (place / "file").write_text("in the way")
    Image.new("RGB", (64, 64)).save(place / "x.png")
    assert "file/out" in refused(capsys, "predict", config, checkpoint, "x.png", "--out-dir", "file/out", folder=place)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("test_evaluator.type=CocoMetrc", "the run cannot be built: KeyError: 'CocoMetrc is not in the"),
        ("test_evaluator.metric=bbx", "bbx"),
        ("test_evaluator._scope_=5", "test_evaluator._scope_: the name of a library is needed, got int 5"),
        ("test_dataloader.sampler.type=DefaultSamplr", "DefaultSamplr"),
        ("test_dataloader.dataset.type=CocoDatase", "CocoDatase"),
        ("test_dataloader.dataset._scope_=5", "test_dataloader.dataset._scope_: the name of a library is needed"),
        ("test_dataloader.dataset.data_root=5", "test_dataloader.dataset.data_root: a path is needed, got 5"),
        ("test_dataloader.dataset.pipeline.1.type=Resiz", "Resiz"),
        ("test_dataloader.batch_size=-1", "batch_size"),
        ("test_dataloader.batch_size=None", "detector.py: test_dataloader.batch_size: a number is needed, got None"),
        ("test_dataloader.sampler=abc", "detector.py: test_dataloader.sampler: a dict is needed, got str 'abc'"),
        ("test_dataloader.dataset.pipeline=None", "test_dataloader.dataset.pipeline: a list of steps is needed, got"),
        ("test_dataloader.dataset.metainfo.classes=abc", "test_dataloader.dataset.metainfo.classes: a list of names, "),
        ("test_dataloader.num_workers=-1", "num_workers"),
        ("test_cfg.type=TestLop", "TestLop"),
        ("model=None", "detector.py: model is missing"),
    ],
)
def test_a_config_that_cannot_be_tested(trained, place, capsys, option, expected):
    message = refused(capsys, "test", "detector.py", trained["detector"][1], "--cfg-options", option, folder=place)
    assert expected in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("test_dataloader.dataset.pipeline.1.type=Resiz", "detector.py: test_dataloader.dataset.pipeline cannot be"),
        (
            "test_dataloader.dataset.pipeline=5",
            "test_dataloader.dataset.pipeline: a list of steps is needed, got int 5",
        ),
        ("test_dataloader.dataset.pipeline=[5]", "dataset.pipeline[0]: a dict with a type is needed, got int 5"),
        ("test_dataloader.dataset.pipeline=None", "test_dataloader.dataset.pipeline is missing"),
        ("test_dataloader.dataset=None", "test_dataloader.dataset.pipeline is missing"),
        ("test_dataloader.dataset.type=CocoDatase", "test_dataloader.dataset cannot be built, which names the classes"),
        ("test_dataloader.dataset.nonsense=1", "nonsense"),
        ("model=None", "detector.py: model is missing"),
    ],
)
def test_a_config_that_cannot_predict(trained, place, capsys, option, expected):
    # Without names of classes, so that those of the data set are needed.
    torch.save({"state_dict": load_checkpoint(trained["detector"][1])["state_dict"]}, "bare.pth")
    message = refused(
        capsys, "predict", "detector.py", "bare.pth", "data/images", "--cfg-options", option, folder=place
    )
    assert expected in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model=None", "detector.py: model is missing"),
        ("test_dataloader.dataset.pipeline=abc", "dataset.pipeline: a list of steps is needed, got str 'abc'"),
        ("test_dataloader.dataset.pipeline=[5]", "dataset.pipeline[0]: a dict with a type is needed, got int 5"),
        ("test_dataloader.dataset.pipeline.1.scale=(a,b)", "scale of Resize: two numbers of pixels are needed, got"),
    ],
)
def test_a_config_that_cannot_be_exported(place, capsys, option, expected):
    assert cli.main(["export", "detector.py", "absent.pth", "--out", "a.onnx", "--cfg-options", option]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("attnzoo: error: ") and expected in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model=None", "detector.py: model is missing"),
        ("optim_wrapper.optimizer=None", "the run cannot be built"),
        ("train_dataloader.dataset.data_root=5", "train_dataloader.dataset.data_root: a path is needed, got 5"),
        ("train_dataloader.dataset._scope_=5", "train_dataloader.dataset._scope_: the name of a library is needed"),
        ("val_evaluator._scope_=5", "val_evaluator._scope_: the name of a library is needed, got int 5"),
    ],
)
def test_a_config_that_cannot_be_trained(place, capsys, option, expected):
    assert expected in refused(capsys, "train", "detector.py", "--cfg-options", option, folder=place)


def test_what_is_none_in_a_config_is_as_if_it_were_not_there(place):
    names = ("custom_hooks", "default_hooks", "randomness", "env_cfg", "custom_imports", "find_unused_parameters")
    (place / "detector.py").open("a").write("".join(f"\n{name} = None" for name in names))
    options = ["train_cfg.max_epochs=1", "train_cfg.val_begin=9"]
    assert cli.main(["train", "detector.py", "--work-dir", "work", "--cfg-options", *options]) == 0
    assert (place / "work" / "epoch_1.pth").is_file()
