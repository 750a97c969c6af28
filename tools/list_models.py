"""List the models of the zoo, or the packaged configs."""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase

from .. import list_models
from .common.errors import UserError
from .common.messages import nearest
from .config.loading import list_configs

EPILOG = """\
examples:
  attnzoo list                 every model
  attnzoo list 'van*'          those of a pattern
  attnzoo list --configs       the configs that train, test and predict know by name
  attnzoo list --configs --table > configs/README.md          with published figures and commands

A model is a timm model: timm.create_model(name, features_only=True) after `import attnzoo`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. 'biformer*' (all)")
    parser.add_argument("--configs", action="store_true", help="list configs instead of models")
    parser.add_argument("--table", action="store_true", help="print all configs as the table of configs/README.md")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.table:
        if not args.configs or args.pattern != "*":
            raise UserError("--table is a table of all configs: attnzoo list --configs --table")
        from .config.table import table

        print(table(), end="")
        return 0
    names = list_configs() if args.configs else list_models()
    found = [name for name in names if fnmatchcase(name, args.pattern)]
    if not found:
        what = "config" if args.configs else "model"
        raise UserError(f"no {what} matches {args.pattern!r}{nearest(args.pattern, names)}")
    print("\n".join(found))
    return 0
