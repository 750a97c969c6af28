"""What mmengine's hooks lack; importing this folder registers them."""

from . import checkpoints, divergence, exactness, progress

__all__ = ["checkpoints", "divergence", "exactness", "progress"]
