"""Decode heads of segmentors that mmseg lacks."""
