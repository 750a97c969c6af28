"""The parts of `attnzoo gpu`: what a GPU is asked in one run of a few minutes."""
