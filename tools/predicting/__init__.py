"""Predictions on images: computed and drawn."""
