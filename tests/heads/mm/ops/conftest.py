"""Serves mmcv's operators before the tests import them."""

import attnzoo.heads.mm  # noqa: F401  the import serves them
