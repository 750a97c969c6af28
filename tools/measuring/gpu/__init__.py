"""The parts of `tools/gpu_check.py`: what a GPU is asked in one run of a few minutes."""
