"""ONNX files: traced, compared with PyTorch, written."""
