"""Logs of runs beside their progress bars."""

from __future__ import annotations

import logging
import sys
from functools import partial

from mmengine.logging import MMLogger

from ..common.files import is_disk_error
from ..common.progress import shown


def quiet(logger: MMLogger) -> MMLogger:
    """Leave the terminal to the bar where one is shown; warnings and errors still reach it."""
    if shown():
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.WARNING)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_log_error, handler)  # type: ignore[method-assign]
    return logger


def _log_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Leave it to the next checkpoint to say once that the disk is full, where each line of the log would."""
    if not is_disk_error(sys.exc_info()[1] or Exception()):
        logging.Handler.handleError(handler, record)
