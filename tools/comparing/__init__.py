"""The same small detector trained without and with each plug-in module."""
