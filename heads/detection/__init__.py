"""Heads and necks of detectors that mmdet lacks."""
