"""Which image of a folder a cell of a table names, however it writes the path."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from densenet_flax.common.errors import InputError


class ImageIndex:
    r"""The images of a folder by every way that tables write their names.

    These are the path from the folder, with the folder's own name or more in front of it, the end
    of the path, absolute, or relative to the table; with '/' or '\', in any case and Unicode form,
    and without the suffix. A name that more than one image has is an error.
    """

    def __init__(self, root: Path, files: Iterable[str]):
        """Takes the paths of the images relative to `root`, with '/'."""
        self._root = root
        self._files = set(files)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for file in sorted(self._files):
            name = _fold(file.rpartition("/")[2])
            self._by_name[name].append(file)
            self._by_stem[os.path.splitext(name)[0]].append(file)

    def find(self, where: str, cell: str, table: Path) -> str:
        """Returns the image of a cell, or raises an `InputError` that begins with `where`."""
        path = _normalize(cell)
        if path in self._files:
            return path
        located = self._locate(path, table)
        if located in self._files:
            return str(located)
        candidates = self._candidates(path)
        if len(candidates) == 1 and located is None:
            return candidates[0]
        if len(candidates) > 1:
            problem = f"is the name of {candidates[0]} and of {candidates[1]}; write the path"
        elif located is not None:
            problem = (
                f"is a file, but not an image in {self._root}; give the folder above it as "
                "data.path, or remove the row"
            )
        else:
            same_stem = self._by_stem.get(os.path.splitext(_fold(path.rpartition("/")[2]))[0], [])
            hint = f" (there is {same_stem[0]})" if same_stem else ""
            problem = f"is not an image in {self._root}{hint}; correct the name or remove the row"
        raise InputError(f"{where}: {cell} {problem}")

    def _locate(self, path: str, table: Path) -> str | None:
        """Returns the path from the root of a file that exists, if the cell leads to one.

        A file outside of the root is returned as it is written, so that another file of its name is
        not taken for it.
        """
        for base in (self._root, table.parent):
            target = base / path  # an absolute path replaces the base
            try:
                if not target.is_file():
                    continue
                relative = os.path.relpath(target.resolve(), self._root.resolve())
                unresolved = os.path.relpath(os.path.abspath(target), os.path.abspath(self._root))
            except (OSError, ValueError):
                continue
            for name in (unresolved, relative):
                if Path(name).as_posix() in self._files:
                    return Path(name).as_posix()
            return path
        return None

    def _candidates(self, path: str) -> Sequence[str]:
        parts = _fold(path).split("/")
        found = self._by_name.get(parts[-1], [])
        if not found:
            found = self._by_stem.get(parts[-1], [])  # an id without a suffix
            parts = parts[:-1]
        else:
            exact = [file for file in found if file.rpartition("/")[2] == path.rpartition("/")[2]]
            found = exact or found
            parts = parts[:-1]
        # Either path has to be the end of the other: where both name a folder it is the same one.
        fitting = [(len(common), file) for file in found if (common := _common_end(parts, file))]
        longest = max((length for length, _ in fitting), default=0)
        return [file for length, file in fitting if length == longest]


def _common_end(folders: Sequence[str], file: str) -> list[str]:
    """Returns the folders that both paths end with, '' in front; [] if they contradict."""
    others = _fold(file).split("/")[:-1]
    shorter = min(len(folders), len(others))
    end = others[len(others) - shorter :]
    return ["", *end] if list(folders[len(folders) - shorter :]) == end else []


def _normalize(cell: str) -> str:
    path = cell.replace("\\", "/")
    drive, colon, rest = path.partition(":")
    if colon and len(drive) == 1:  # of Windows
        path = rest
    path = os.path.normpath(path).replace(os.sep, "/")
    return path[1:] if path.startswith("//") else path


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
