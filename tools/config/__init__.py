"""Configs: found, read, checked."""
