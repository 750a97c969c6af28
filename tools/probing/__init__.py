"""Frozen backbones, and small classifiers trained on their features."""
