"""Images in folders by class, and scikit-learn's digits."""

import pytest
from tools_helpers import HUES, paint

from attnzoo.tools.common.errors import UserError
from attnzoo.tools.data.labelled_images import digits, image_folder


@pytest.mark.parametrize("val", ["val", "test"])
def test_folders_of_the_splits_are_taken(folder, tmp_path, val):
    root = tmp_path / "split"
    for seed, (name, hue) in enumerate(HUES.items()):
        paint(root / val / name, hue, 3, 10 + seed)
    folder.rename(root / "train")
    data = image_folder(root)
    assert [path.parent.parent.name for path, _ in data.items["val"]] == [val] * 9
    assert len(data.items["train"]) == 30


def test_a_class_may_be_called_train(folder, tmp_path):
    (folder / "blue").rename(folder / "train")
    assert image_folder(folder).classes == ("green", "red", "train")


def test_scikit_learn_missing_is_named(monkeypatch):
    from attnzoo.tools.data import labelled_images

    monkeypatch.setattr(labelled_images, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--digits needs scikit-learn: pip install scikit-learn"):
        digits()


def test_bad_folders(folder):
    with pytest.raises(UserError, match="--val-share must be between 0 and 1"):
        image_folder(folder, 1.5)
    with pytest.raises(UserError, match="has 0 folders with images, and two classes are needed"):
        image_folder(folder / "red")
    paint(folder / "white", (250, 250, 250), 1, 5)
    with pytest.raises(UserError, match="class 'white' has one image"):
        image_folder(folder)
    for name in ("red", "blue"):
        paint(folder / "train" / name, HUES[name], 2, 0)
        paint(folder / "val" / (name if name == "red" else "grey"), (9, 9, 9), 2, 0)
    with pytest.raises(UserError, match="train/ and val/ have other classes: blue, grey"):
        image_folder(folder)
