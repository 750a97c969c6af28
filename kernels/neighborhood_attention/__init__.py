"""Neighborhood attention: each pixel attends to a window around itself, moved inside at the borders of the map."""

from .reference import neighborhood_attention

__all__ = ["neighborhood_attention"]
