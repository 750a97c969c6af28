import argparse
import functools
import re

import pytest

from attnzoo.backbones.contract.facts import families
from attnzoo.tools.card import CARD_ROOT, card, run, table
from attnzoo.tools.common.errors import UserError
from attnzoo.tools.measuring import models

card = functools.cache(card)


@pytest.mark.parametrize("family", families())
def test_card_is_current(family, monkeypatch):
    """But for the multiply-adds, which take minutes over the whole zoo: those of each family's first model here."""
    text = (CARD_ROOT / f"{family}.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\w+)` \| [\d.]+ \| ([\d.]+) at ", text, flags=re.MULTILINE))
    count, (first, *_) = models.multiply_adds, stated
    monkeypatch.setattr(
        models,
        "multiply_adds",
        lambda name, *size: count(name, *size) if name == first else round(1e9 * float(stated.get(name, 0))),
    )
    assert text == card.__wrapped__(family), "run: attnzoo card --write"


@pytest.mark.slow
@pytest.mark.parametrize("family", families())
def test_card_counts_every_model(family):
    assert (CARD_ROOT / f"{family}.md").read_text(encoding="utf-8") == card(family), "run: attnzoo card --write"


def test_no_card_is_left_over():
    assert {path.stem for path in CARD_ROOT.glob("*.md")} == set(families())


@pytest.mark.long
@pytest.mark.parametrize(("size", "giga"), [("tiny", 2.22), ("small", 4.46), ("base", 9.76), ("stl", 4.57)])
def test_counts_what_the_paper_counts(size, giga):
    row = next(line for line in card("biformer").splitlines() if line.startswith(f"| `biformer_{size}`"))
    assert float(row.split("|")[3].split()[0]) == giga


def test_unknown_family():
    with pytest.raises(UserError, match="did you mean biformer"):
        card("biforma")


def test_readme_has_the_table():
    readme = (CARD_ROOT.parent / "README.md").read_text(encoding="utf-8")
    assert f"\n\n{table()}\n" in readme, "put what `attnzoo card --table` prints into README.md"


def test_table_takes_no_family():
    with pytest.raises(UserError, match="--table is a table of all families"):
        run(argparse.Namespace(family="van", table=True, write=False))
