"""What several families share: whole bodies, attention exchanged in them, layers, and tiles for large images."""
