"""attnzoo: attention backbones for computer vision, as timm models.

`import attnzoo` registers every model with timm and needs torch and timm alone.
The mm libraries are met by `import attnzoo.heads`, the commands by `attnzoo --help`.
"""

from .backbones import attach, attention, list_models

__version__ = "0.1.0"
__all__ = ["__version__", "attach", "attention", "list_models"]
