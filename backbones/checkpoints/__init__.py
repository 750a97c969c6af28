"""Checkpoints of any origin, read without running code of theirs, and the conversion of published ones."""

from .reader import CheckpointError, allow, check_weights, read_checkpoint, read_safetensors

__all__ = ["CheckpointError", "allow", "check_weights", "read_checkpoint", "read_safetensors"]
