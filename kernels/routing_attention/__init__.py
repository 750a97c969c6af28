"""Bi-level routing attention: each region of queries attends to the tokens of the regions that it matches best."""

from .reference import route, routing_attention

__all__ = ["route", "routing_attention"]
