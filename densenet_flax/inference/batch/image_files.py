"""The image files that a path or a pattern selects, and the patients that their names state."""

import dataclasses
import glob
import itertools
import os
from pathlib import Path

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.names import GROUPS, parse_name
from densenet_flax.data.images.image_files import IMAGE_SUFFIXES, walk_images
from densenet_flax.data.sources.folder import find_patient
from densenet_flax.weights.inference_settings import InferenceSettings


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
      path: opens it from the current directory.
      name: its path relative to the folder that was searched, with '/' on every system; unique.
    """

    path: Path
    name: str


def find_images(images: str) -> list[ImageFile]:
    """Finds the images of a path or a pattern with `*`, `?`, `[…]`, and `**` for any depth.

    Subfolders are searched too. The images are sorted by name. InputError if there is none.
    """
    root = Path(images).expanduser()
    if root.is_file():
        return [ImageFile(root, root.name)]  # whatever its suffix: it was asked for by name
    if root.is_dir():
        files = [ImageFile(path, name) for name, path in walk_images(root).items()]
    else:
        files = _match(root)
    if not files:
        raise InputError(
            f"--images={images}: no image found; expected a folder, a file or a pattern such as "
            f"'tiles/**/*.png', of files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return files


def _match(pattern: Path) -> list[ImageFile]:
    paths = [path for path in map(Path, glob.glob(str(pattern), recursive=True)) if path.is_file()]
    images = sorted(path for path in paths if path.name.lower().endswith(IMAGE_SUFFIXES))
    if images and len(images) < len(paths):
        logging.info("%s: ignored %d other files", pattern, len(paths) - len(images))
    # Names are relative to the folder above the first part of the pattern that may match several.
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1])
    base = Path(*fixed)
    return [ImageFile(path, path.relative_to(base).as_posix()) for path in images]


def patient_from_name(file: ImageFile, settings: InferenceSettings) -> str:
    """The patient that the name of a file states; '' if it states none.

    `patient_pattern` is searched in the path, with the meaning of `data.patient_pattern`: the first
    group, or all that matches. Without a pattern, names of BreakHis state the patient, by
    `patient_group`, 'case70' if that is unknown.
    """
    if pattern := settings.patient_pattern:
        # With '/' in front, so that a pattern with '/' also matches the first part of a path.
        return find_patient(pattern, os.path.join("/", file.path.as_posix()))
    name = parse_name(file.path.name)
    if name is None:
        return ""
    group = settings.patient_group if settings.patient_group in GROUPS else GROUPS[0]
    return name.patient(group)
