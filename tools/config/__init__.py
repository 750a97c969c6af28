"""Configs: found, read, checked, and the errors of what they build."""
