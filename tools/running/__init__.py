"""Trainings and tests: runs by mmengine, their hooks, checkpoints and work directories."""
