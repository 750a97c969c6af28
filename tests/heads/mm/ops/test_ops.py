"""The stand-in for `mmcv._ext` as a module: who wins, what is missing, what imports."""

import sys

import interpreters
import pytest

from attnzoo.heads.mm import ops

ops.install()


def test_install_is_idempotent_and_last():
    before = list(sys.meta_path)
    ops.install()
    assert sys.meta_path == before
    assert sum(type(finder).__module__ == ops.__name__ for finder in sys.meta_path) == 1


def test_module_has_a_spec_and_mmcv_counts_as_full():
    import mmcv._ext
    from mmengine.utils.dl_utils import mmcv_full_available

    assert mmcv._ext.__spec__.name == "mmcv._ext"
    assert mmcv_full_available()


def test_versions_are_reported():
    import mmcv.ops

    assert "attnzoo" in mmcv.ops.get_compiler_version()
    assert mmcv.ops.get_compiling_cuda_version() == "not available"


def test_unserved_operator_names_itself_and_the_served_ones():
    import mmcv._ext

    operator = mmcv._ext.ball_query_forward
    with pytest.raises(NotImplementedError, match=r"'ball_query_forward'.*roi_align_forward"):
        operator(1, b=2)


def test_dunder_names_are_missing():
    import mmcv._ext

    with pytest.raises(AttributeError, match="__wrapped__"):
        mmcv._ext.__wrapped__  # noqa: B018


@pytest.mark.long
def test_compiled_module_wins(tmp_path):
    (tmp_path / "_ext.py").write_text("def __getattr__(name):\n    return 'compiled ' + name\n")
    code = (
        f"import mmcv; mmcv.__path__.append({str(tmp_path)!r}); import attnzoo.heads, mmcv._ext; print(mmcv._ext.nms)"
    )
    result = interpreters.run(code)
    assert result.stdout.strip() == "compiled nms", result.stderr
