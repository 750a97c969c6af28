"""What several families share: whole bodies with exchangeable attention, layers, and tiles for large images."""
