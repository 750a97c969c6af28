"""The classes that the parts of a config name, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Whose code is known.
_LIBRARIES = {"abc", "attnzoo", "builtins", "mmcv", "mmdet", "mmengine", "mmseg", "torch", "typing"}


def class_of(part: Any, registry: Any) -> type | None:
    """The class of a part of a config, None where it is not known (which is told when it is built).

    Args:
        part: A dict, whose `type` is a class or a name.
        registry: Of mmengine's root registries the one that knows the name, by itself or by its children.
    """
    kind = part.get("type")
    if not isinstance(kind, str):
        return kind if isinstance(kind, type) else None
    with registry.switch_scope_and_registry(part.get("_scope_")) as scoped:
        return scoped.get(kind)


def root_of(found: type) -> str:
    """The library, or the module of the user's own, that a class is of."""
    return found.__module__.partition(".")[0]


def class_names(found: type | None) -> set[str]:
    """The names of a class and its bases, each behind that of its library, such as `mmdet.CocoDataset`."""
    return {f"{root_of(base)}.{base.__name__}" for base in getattr(found, "__mro__", ())}


def is_own(found: type | None) -> bool:
    """Whether a class is one of the user's own, of which it is not known what it does."""
    return found is not None and root_of(found) not in _LIBRARIES


def is_checkpoint_hook(kind: Any) -> bool:
    """Whether a `type`, by whatever name or as a class, is mmengine's checkpoint hook, or the safe one in its place."""
    from mmengine.hooks import CheckpointHook
    from mmengine.registry import HOOKS

    return kind == "AtomicCheckpointHook" or class_of({"type": kind}, HOOKS) is CheckpointHook


def nested(value: Any) -> Iterator[Any]:
    """All dicts in a config, at any depth."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from nested(part)
