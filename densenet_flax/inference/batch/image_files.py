"""The image files that a path or a pattern selects, and the patients that their names state."""

import dataclasses
import fnmatch
import functools
import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from densenet_flax.common.errors import InputError, errors_in
from densenet_flax.data.images.formats import IMAGE_SUFFIXES, SCANNER_SUFFIXES
from densenet_flax.data.sources.files import FileListing, describe_left_out, list_files
from densenet_flax.data.sources.patients import find_patients
from densenet_flax.weights.inference_settings import InferenceSettings


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
      path: opens it from the current directory.
      name: its path relative to the folder that was searched, with '/' on every system; unique.
      name_in_data: its path relative to the root of the data, where patients are found by it; '' if
        that is `name`.
    """

    path: Path
    name: str
    name_in_data: str = ""


def find_images(
    images: str,
    *,
    flag: str = "--images",
    example: str = "tiles/**/*.png",
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
) -> list[ImageFile]:
    """Finds the images of a path or a pattern with `*`, `?`, `[…]`, and `**` for any depth.

    Subfolders are searched too. The images are sorted by name. What is left out is logged.

    Args:
      images: the path or pattern.
      flag: that gave it, for messages.
      example: of a pattern, for messages.
      suffixes: lower-case endings of names; of a single file any is taken.

    Raises:
      InputError: there is no image, or the folder cannot be read.
    """
    path = Path(images).expanduser()
    if path.exists() and not path.is_dir():
        return [ImageFile(path, path.name)]  # whatever its suffix: it was asked for by name
    listing = list_files(path, suffixes=suffixes) if path.is_dir() else _match(path, flag, suffixes)
    left_out = describe_left_out(listing.left_out.values()) if listing else ""
    if not listing or not listing.images:
        slides = listing and not {*SCANNER_SUFFIXES}.isdisjoint(listing.left_out.values())
        raise InputError(
            f"{flag}={images}: no {flag[2:-1]} found; expected a folder, a file or a pattern such "
            f"as {example!r}, of files that end in {', '.join(suffixes)}{left_out}"
            + (", which are slides: predict them with --mode=slide" if slides else "")
        )
    if left_out:
        logging.info("%s: %s", images, listing.describe())
    for problem in listing.problems:
        logging.warning("skipped: %s", problem)
    return [ImageFile(path, name) for name, path in listing.images.items()]


def _match(pattern: Path, flag: str, suffixes: tuple[str, ...]) -> FileListing | None:
    """Lists what a pattern selects; None if it has no wildcard, or its folder does not exist."""
    # Names are relative to the folder above the first part of the pattern that may match several.
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    base, parts = Path(*fixed), pattern.parts[len(fixed) :]
    if ".." in parts:
        raise InputError(f"{flag}={pattern}: '..' behind a wildcard; name the folder before it")
    if not parts or not base.is_dir():
        return None
    return list_files(base, functools.partial(_selects, parts), suffixes)


def _selects(parts: Sequence[str], name: str, is_folder: bool) -> bool:
    return _matches(name.split("/"), parts, is_folder)


def _matches(names: Sequence[str], parts: Sequence[str], is_folder: bool) -> bool:
    """Whether a path matches a pattern; of a folder, whether something in it may."""
    if not names:
        # A last `**` matches all that is in a folder.
        return (is_folder and bool(parts)) or all(part == "**" for part in parts)
    if not parts:
        return False
    if parts[0] == "**":
        return _matches(names, parts[1:], is_folder) or (
            not names[0].startswith(".") and _matches(names[1:], parts, is_folder)
        )
    # As in a shell, a wildcard does not match the dot of a hidden name.
    is_hidden = names[0].startswith(".") and not parts[0].startswith(".")
    matches = fnmatch.fnmatchcase(names[0], parts[0]) and not is_hidden
    return matches and _matches(names[1:], parts[1:], is_folder)


def with_names_in_data(files: Sequence[ImageFile], roots: Sequence[str]) -> list[ImageFile]:
    """Names files below a folder that the network was trained with relative to that folder.

    So a part of that data, or one of its files, has the patients that training found.
    """
    absolute_roots = [os.path.abspath(Path(root).expanduser()) for root in roots]
    named = []
    for file in files:
        path = os.path.abspath(file.path)
        inside = (
            os.path.relpath(path, r) for r in absolute_roots if path.startswith(f"{r}{os.sep}")
        )
        name = Path(next(inside, file.name)).as_posix()
        named.append(dataclasses.replace(file, name_in_data=name))
    return named


def patients_from_names(files: Sequence[ImageFile], settings: InferenceSettings) -> list[str]:
    """The patient that each name states by the rule of training; '' if it states none."""
    with errors_in("the network's "):
        return find_patients(
            [file.name_in_data or file.name for file in files],
            pattern=settings.patient_pattern,
            source=settings.patient_source,
            group=settings.patient_group,
            merge=settings.merge_patients,
        )
