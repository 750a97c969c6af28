"""What each model was compared with: `attnzoo info`, the model cards and README's table of models print it."""

from collections.abc import Iterable
from dataclasses import dataclass

from .facts import Check, group_of

__all__ = ["Comparison", "abbreviated", "comparison"]


@dataclass(frozen=True)
class Comparison:
    """What a model was compared with; in words by `str`.

    Golden files hold what the published code computes in float64; the tests compare every one with our model.

    Args:
        golden: files of the model itself.
        kin: where there are none, models with golden files that differ from it in sizes alone, but for `beyond`.
        beyond: which of its layers are in none of these.
        no_golden: why neither it nor its kin has a file.
        golden_note: what the files leave out, or how they were made if not by published code alone.
        checks: other comparisons that the tests make.
    """

    golden: tuple[str, ...] = ()
    kin: tuple[str, ...] = ()
    beyond: str = ""
    no_golden: str = ""
    golden_note: str = ""
    checks: tuple[Check, ...] = ()

    def __str__(self) -> str:
        if self.golden:
            text = f"published code of this model (golden {'file' if len(self.golden) == 1 else 'files'} "
            text += f"{', '.join(self.golden)})"
        elif self.kin:
            text = f"published code of {' and '.join(self.kin)}: the same layers in other sizes"
            text += f", but for {self.beyond}" if self.beyond else ""
        else:
            text = f"no golden file ({self.no_golden})"
        text += f"; {self.golden_note}" if self.golden_note else ""
        if self.checks:
            text += f"; also compared with {' and '.join(check.against for check in self.checks)}"
        return text


def comparison(name: str) -> Comparison | None:
    """What a model was compared with; None for timm's own models, which are not compared here.

    Args:
        name: of the model, with or without a tag.
    """
    group = group_of(name)
    if group is None:
        return None
    variant = group.variants[name.partition(".")[0]]
    if variant.golden:
        return Comparison(golden=variant.golden, golden_note=group.golden_note, checks=group.checks)
    kin = tuple(other for other, its in group.variants.items() if its.golden)
    return Comparison(
        kin=kin,
        beyond=variant.beyond,
        no_golden=group.no_golden,
        golden_note=group.golden_note,
        checks=group.checks,
    )


def abbreviated(names: Iterable[str]) -> list[str]:
    """Names as a shell's patterns, in their order: those that differ behind the last underscore share one.

    `["van_b0", "van_b1", "resnet18_cbam"]` becomes `["van_{b0,b1}", "resnet18_cbam"]`.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        head, bar, last = name.rpartition("_")
        found.setdefault(head + bar, []).append(last)
    return [head + (lasts[0] if len(lasts) == 1 else f"{{{','.join(lasts)}}}") for head, lasts in found.items()]
