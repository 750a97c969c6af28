"""Window attention: plain, shifted (Swin) or with key windows that overlap (HAT), with a relative position bias."""

from .reference import window_attention

__all__ = ["window_attention"]
