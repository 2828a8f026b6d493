"""What the folders above tiles mean: which one is the class, and which one the subset.

    train/benign/1.png    subset train, class benign
    fold_2/tumor/1.png    fold 2, class tumor
    tumor/slide-17/1.png  class tumor

Where folders can be read in more than one way, nothing is guessed: the reading is an error until
`data.label_level` or `data.label_pattern` states it.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from densenet_flax.common.errors import InputError
from densenet_flax.common.patterns import first_matches
from densenet_flax.data.breakhis.names import find_slide

# Names that data sets have for the three subsets.
_SUBSET_WORDS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "holdout": "test",
}
_SUBSET = re.compile(
    rf"(?:\d+[ _-])?({'|'.join(_SUBSET_WORDS)})"
    r"(?:[ _-]?(?:set|split|data|dataset|images?|tiles|patches))?"
)
_FOLD = re.compile(r"(?:fold|split|cv|cvfold)[ _-]?(\d+)")
_MAGNIFICATION = re.compile(
    r"(?:mag(?:nification)?[ _-]?)?(?:\d+(?:\.\d+)?[ _-]?x|x\d+|[124]00|40)"
)
# A patient, a slide or another thing that is counted: never the name of a class.
_IDENTIFIER = re.compile(
    r"(?:p|pt|pat|patient|case|s|slide|subj|subject|wsi|donor|sample|specimen|biopsy|id)"
    r"[ _-]?\d+[a-z]{0,2}|\d{3,}[a-z]{0,2}|tcga-.*|sob_[bm]_.*"
)
_STATE = (
    "set data.label_level to the folder that is the class (0: the top one, 1: the one below, "
    "-1: the innermost), or data.label_pattern to a regular expression that finds it in these paths"
)


@dataclasses.dataclass(frozen=True)
class TreeLayout:
    """The class and the subset of each file.

    Attributes:
      labels: the class of each file.
      subsets: 'train', 'validation', 'test' or 'fold_2' of each file; () if the tree states none.
      labels_from: what was taken for the class, in words.
      subsets_from: what was taken for the subset, in words; '' if nothing was.
    """

    labels: Sequence[str]
    subsets: Sequence[str]
    labels_from: str
    subsets_from: str = ""


def subset_of_word(word: str) -> str:
    """Returns 'train', 'validation', 'test' or 'fold_N' for a usual name of it; '' for others."""
    word = word.strip().casefold()
    if match := _SUBSET.fullmatch(word):
        return _SUBSET_WORDS[match[1]]
    match = _FOLD.fullmatch(word)
    return f"fold_{int(match[1])}" if match else ""


def read_subsets(files: Sequence[str]) -> tuple[Sequence[str], int | None]:
    """Finds the folder level that states the subset of each file.

    Args:
      files: paths relative to the root of the data, with '/'.

    Returns:
      The subset of each file, or () if no level states it; and the level, from 0, or None.

    Raises:
      InputError: two levels do, or a level names subsets and something else.
    """
    folders = [tuple(file.split("/")[:-1]) for file in files]
    found: list[tuple[int, Sequence[str]]] = []
    for level in range(min(map(len, folders), default=0)):
        words = {names[level] for names in folders}
        subset_of = {word: subset_of_word(word) for word in words}
        named = {subset for subset in subset_of.values() if subset}
        if len(named) < 2:
            continue
        folds = {subset for subset in named if subset.startswith("fold")}
        if "" in subset_of.values() or (folds and folds != named):
            others = sorted(word for word, subset in subset_of.items() if not subset) or sorted(
                words
            )
            stated = sorted(word for word, subset in subset_of.items() if subset)
            raise InputError(
                f"the folders {', '.join(stated[:3])} are named like subsets, but beside them is "
                f"{others[0]} ({_first_paths(files)}); move it out of data.path, or give the "
                "folder of one subset as data.path and that of the test images as data.test_path"
            )
        found.append((level, [subset_of[names[level]] for names in folders]))
    if len(found) > 1:
        levels = " and ".join(str(level) for level, _ in found)
        raise InputError(
            f"the folder levels {levels} are both named like subsets or folds "
            f"({_first_paths(files)}); give the folder of one of them as data.path"
        )
    return (found[0][1], found[0][0]) if found else ((), None)


def read_layout(files: Sequence[str], level: int | None = None, pattern: str = "") -> TreeLayout:
    """Reads the class and, if folders state it, the subset of each file from its path.

    Args:
      files: paths relative to the root of the data, with '/'.
      level: the folder that is the class, 0 for the top one, -1 for the innermost; None to find it.
      pattern: a regular expression that finds the class in a path: its first group, or all of it.

    Raises:
      InputError: the folders can be read in more than one way, or a path has no class.
    """
    if pattern:
        labels = _by_pattern(pattern, files)
        subsets, subset_level = read_subsets(files)
        labels_from = f"data.label_pattern={pattern!r}"
    elif level is not None:
        labels = [_at_level(file, level) for file in files]
        subsets, subset_level = read_subsets(files)
        depth = {len(file.split("/")) - 1 for file in files}
        if subset_level is not None and any(subset_level == level % d for d in depth):
            subsets, subset_level = (), None  # what looks like subsets is stated to be the class
        labels_from = f"data.label_level={level}"
    else:
        subsets, subset_level = read_subsets(files)
        levels = _varying_levels(files, subsets, subset_level)
        labels = [names[0] for names in levels]
        if reason := _ambiguity(files, levels):
            classes = sorted(set(labels))
            shown = ", ".join(classes[:4]) + (", …" if len(classes) > 4 else "")
            raise InputError(
                f"{reason} ({_first_paths(files)}). The class would be {shown}; {_STATE}"
            )
        labels_from = "the folder"
    labels_from += f", as in {files[0]} → {labels[0]}"
    subsets_from = "" if subset_level is None else f"folders at level {subset_level}"
    return TreeLayout(labels, subsets, labels_from, subsets_from)


def _first_paths(files: Sequence[str]) -> str:
    return ", ".join(files[:3])


def _by_pattern(pattern: str, files: Sequence[str]) -> list[str]:
    labels = first_matches(pattern, files, "data.label_pattern")
    for file, label in zip(files, labels, strict=True):
        if not label:
            raise InputError(f"{file}: data.label_pattern={pattern!r} finds no class in this path")
    return labels


def _at_level(file: str, level: int) -> str:
    folders = file.split("/")[:-1]
    if not -len(folders) <= level < len(folders):
        raise InputError(
            f"{file}: has {len(folders)} folder(s) in data.path, so data.label_level={level} names "
            "none; move it into a class folder or correct the level"
        )
    return folders[level]


def _varying_levels(
    files: Sequence[str], subsets: Sequence[str], subset_level: int | None
) -> list[list[str]]:
    """Returns of each path the folders that may be the class: those that differ between files."""
    folders = [file.split("/")[:-1] for file in files]
    if subset_level is not None:
        folders = [names[:subset_level] + names[subset_level + 1 :] for names in folders]
    for file, names in zip(files, folders, strict=True):
        if not names:
            name = file.rpartition("/")[2]
            hint = "; BreakHis's names state the class: use configs/breakhis.py"
            raise InputError(
                f"{file}: is not in a class folder; expected <class>/{name}, or a CSV as data.csv"
                + hint * bool(find_slide(name))
            )
    level = 0
    while level < min(map(len, folders)) and min(map(len, folders)) > 1:
        # Folders around everything, such as the one that an archive unpacks to, say nothing. Each
        # subset may have its own.
        names_in: dict[str, set[str]] = defaultdict(set)
        for i, names in enumerate(folders):
            names_in[subsets[i] if subsets else ""].add(names[level])
        is_constant = all(len(names) == 1 for names in names_in.values())
        # A magnification below the class says nothing about it.
        is_scale = level > 0 and all(
            map(_is_magnification, {n for s in names_in.values() for n in s})
        )
        if is_constant or is_scale:
            folders = [names[:level] + names[level + 1 :] for names in folders]
        else:
            level += 1
    return folders


def _ambiguity(files: Sequence[str], levels: Sequence[Sequence[str]]) -> str:
    """Returns why the top one of these levels may not be the class; '' if nothing speaks for it."""
    tops = sorted({names[0] for names in levels})
    for what, is_like in (
        ("subsets or folds", subset_of_word),
        ("magnifications", _is_magnification),
    ):
        if like := [top for top in tops if is_like(top)]:
            return f"the top folders ({', '.join(like[:3])}) are named like {what}"
    if len(tops) > 1 and all(_IDENTIFIER.fullmatch(top.casefold()) for top in tops):
        return f"the top folders ({', '.join(tops[:3])}) are named like patients or slides"
    if _agrees_with_breakhis(files, levels):
        return ""
    tops_of: Mapping[str, set[str]] = defaultdict(set)
    for names in levels:
        if len(names) > 1:
            tops_of[names[1]].add(names[0])
    inner = sorted(tops_of)
    if len(tops) < 2 or not inner:
        return ""
    shared = [name for name in inner if len(tops_of[name]) > 1]
    if 2 * len(shared) >= len(inner):
        return (
            f"the top folders ({', '.join(tops[:3])}) hold the same subfolders "
            f"({', '.join(shared[:3])}); if they are subsets, give one as data.path and the other "
            "as data.test_path"
        )
    # Folders of patients and slides have numbers; those without may be the classes, as
    # lung/adenocarcinoma beside colon/adenocarcinoma.
    if len(inner) > 1 and not any(re.search(r"\d", name) for name in inner):
        return f"below the top folders ({', '.join(tops[:3])}) are others ({', '.join(inner[:3])})"
    return ""


def _is_magnification(name: str) -> bool:
    return bool(_MAGNIFICATION.fullmatch(name.strip().casefold()))


def _agrees_with_breakhis(files: Sequence[str], levels: Sequence[Sequence[str]]) -> bool:
    """Whether the top folders are the classes that BreakHis's file names state."""
    tops_of: Mapping[str, set[str]] = defaultdict(set)
    for file, names in zip(files, levels, strict=True):
        slide = find_slide(file)
        if slide is None:
            return False
        tops_of[slide.label].add(names[0])
    tops = list(tops_of.values())
    return len(tops) == 2 and len(tops[0]) == len(tops[1]) == 1 and tops[0] != tops[1]
