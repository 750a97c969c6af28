"""Triton's interpreter in half its time: its language is replaced once, and integer overflows are not looked for.

By itself it replaces the language for each kernel and for each function that a kernel calls, which takes a quarter of
its time. A third goes into the overflows.
"""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


def replace(setattr: Callable[[Any, str, Any], None] = setattr, overflows: bool = False) -> Callable[[], None]:
    """Makes the interpreter quicker.

    Args:
        setattr: by which attributes are replaced, such as `monkeypatch.setattr`.
        overflows: whether they are looked for all the same.

    Returns:
        What gives Triton its language back.
    """
    from triton.runtime import interpreter

    replace_language = interpreter._patch_lang
    # By the module whose functions see the language: Triton's own see another part of it.
    replacements: dict[str, Any] = {}

    def replace_once(function: Callable) -> Any:
        module = function.__globals__["__name__"]
        if module not in replacements:
            replacements[module] = replace_language(function)
        return SimpleNamespace(restore=lambda: None)

    setattr(interpreter, "_patch_lang", replace_once)
    if not overflows:
        builder = interpreter.interpreter_builder
        setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))

    def restore() -> None:
        for replacement in reversed(replacements.values()):
            # Triton 3.5 has no way back.
            if replacement is not None:
                replacement.restore()

    return restore
