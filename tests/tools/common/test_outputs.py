"""Outputs and inputs of a command, by all their names."""

import pytest

from attnzoo.tools.common import files, outputs
from attnzoo.tools.common.errors import UserError


def alias(kind, path):
    """Another name of a file or folder."""
    if kind == "same":
        return path
    if kind == "dots":
        return path.parent / "x" / ".." / path.name
    other = path.with_name("alias.pth")
    other.symlink_to(path) if kind == "symlink" else other.hardlink_to(path)
    return other


@pytest.mark.parametrize("kind", ["same", "dots", "symlink", "hardlink"])
def test_an_output_is_no_input_by_any_name(tmp_path, kind):
    path = tmp_path / "a.pth"
    path.write_text("weights")
    output = alias(kind, path)
    with pytest.raises(UserError, match=r"is read by this command, which would replace it"):
        outputs.check_outputs([tmp_path / "other", output], [tmp_path / "absent", path])
    with pytest.raises(UserError, match="is read by"), files.atomic_path(output, [path]) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "weights"


def test_folders_are_compared_too(tmp_path):
    with pytest.raises(UserError, match="is read by"):
        outputs.check_outputs([tmp_path], [tmp_path], folders=True)
    outputs.check_outputs([tmp_path / "inside"], [tmp_path], folders=True)


def test_what_is_there_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "a.json").write_text("mine")
    outputs.check_outputs([tmp_path / "a.json"])
    with pytest.raises(UserError, match=r"a\.json: is there already: name another file, or give --overwrite"):
        outputs.check_outputs([tmp_path / "a.json"], overwrite=False)


def test_what_stands_in_a_folder_that_is_read_is_not_replaced(tmp_path):
    image = tmp_path / "images" / "deep" / "7.jpg"
    image.parent.mkdir(parents=True)
    image.write_text("mine")
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(UserError, match=r"7\.jpg: stands in .*images, which this command reads"):
        outputs.check_outputs([image], [tmp_path, tmp_path / "images"])
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "out.json")
    with pytest.raises(UserError, match=r"link\.jpg: stands in"):
        outputs.check_outputs([tmp_path / "images" / "link.jpg"], [tmp_path / "images"])
    outputs.check_outputs([tmp_path / "out.json", tmp_path / "images" / "new.json"], [tmp_path, tmp_path / "images"])


def test_names_that_cannot_be_written_are_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for output, said in (
        (tmp_path, "is a folder: name a file"),
        (tmp_path / "file" / "a.json", r"cannot be written: .*file is no folder"),
        (tmp_path / "link", "is there already"),
    ):
        with pytest.raises(UserError, match=said):
            outputs.check_outputs([output], overwrite=False)
    with pytest.raises(UserError, match="file: is no folder"):
        outputs.check_outputs([tmp_path / "file"], folders=True)


def test_two_outputs_are_two_files(tmp_path):
    with pytest.raises(UserError, match=r"same\.png: would be written twice"):
        outputs.check_outputs([tmp_path / "same.png", tmp_path / "." / "x" / ".." / "same.png"])
