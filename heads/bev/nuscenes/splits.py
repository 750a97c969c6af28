"""Which scenes belong to which split of nuScenes."""

import json
from pathlib import Path

# Numbers of the scenes, as the devkit has them (nutonomy/nuscenes-devkit, python-sdk/nuscenes/utils/splits.py).
_OFFICIAL = {
    "train": "1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 202-204 "
    "206-214 218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 410-459 461-465 467-469 "
    "471-472 474-480 499-502 504-515 517-518 525-539 541-546 566 568 570-578 580 582-600 639-679 681 683-689 695-698 "
    "700-701 703-719 726-728 730-731 733-741 744 746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 "
    "815-817 819-822 847-856 858 860-866 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-992 "
    "994-1025 1044-1058 1074-1102 1104-1110",
    "val": "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 "
    "777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073",
    "test": "77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 827-831 "
    "833-842 844-846 932-933 935-943 1026-1043",
    "mini_train": "61 553 655 757 796 1077 1094 1100",
    "mini_val": "103 916",
}
# Beside the tables: the splits of a data set that is not nuScenes itself, as the devkit reads them.
_OWN = "splits.json"


def official_scenes(split: str) -> list[str]:
    """The names of the scenes of `train`, `val`, `test`, `mini_train` or `mini_val`, in order.

    Raises:
        ValueError: For another name.
    """
    if split not in _OFFICIAL:
        raise ValueError(f"split={split!r}: allowed are {', '.join(map(repr, _OFFICIAL))}")
    names = []
    for part in _OFFICIAL[split].split():
        first, _, last = part.partition("-")
        names += [f"scene-{number:04d}" for number in range(int(first), int(last or first) + 1)]
    return names


def is_official(split: str, folder: Path) -> bool:
    """Whether a name stands for an official split, and not for one of the folder's `splits.json`."""
    return split in _OFFICIAL and split not in _own_splits(folder / _OWN)


def split_scenes(split: str, folder: Path) -> list[str]:
    """The names of the scenes of a split.

    Args:
        split: A key of `splits.json` in the folder, an object of lists of names, as nuScenes' devkit takes it; or the
            name of an official split; or the path of a text file with a name in each line.
        folder: Of the tables.

    Raises:
        FileNotFoundError: There is no such text file.
        ValueError: There is no such split, or a file does not hold names, naming the file.
    """
    own = _own_splits(folder / _OWN)
    if split in own:
        return own[split]
    if split in _OFFICIAL:
        return official_scenes(split)
    if split.endswith(".txt"):
        path = Path(split)
        if not path.is_file():
            raise FileNotFoundError(f"split={split!r}: there is no such file")
        return [name for line in path.read_text(encoding="utf-8").splitlines() if (name := line.strip())]
    allowed = ", ".join(map(repr, [*own, *_OFFICIAL]))
    raise ValueError(f"split={split!r}: must be a .txt file with names of scenes, or one of {allowed}")


def _own_splits(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold an object of lists of names, got {type(content).__name__}")
    for name, scenes in content.items():
        if not isinstance(scenes, list) or not all(isinstance(scene, str) for scene in scenes):
            raise ValueError(f"{path}: {name!r} must be a list of names of scenes, got {scenes!r:.80}")
    return content
