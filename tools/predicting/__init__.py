"""Predictions on images: computed and written."""
