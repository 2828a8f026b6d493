"""Which images a person means by a folder or a pattern, and whose they are."""

import dataclasses
import glob
import os
import re
from pathlib import Path

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.names import parse_name
from densenet_flax.data.images.image_files import IMAGE_SUFFIXES, walk_images
from densenet_flax.weights.inference_settings import InferenceSettings


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
      path: as it can be opened from here.
      name: its path within what was searched, with '/' on every system; no two are the same.
    """

    path: Path
    name: str


def find_images(images: str) -> list[ImageFile]:
    """The images of a folder, with all folders in it, of a pattern, or one file; sorted by name.

    Args:
      images: a path, or a pattern with `*`, `?`, `[…]` and `**` for any depth.

    Raises:
      InputError: nothing is found.
    """
    root = Path(images).expanduser()
    if root.is_dir():
        found = [ImageFile(path, name) for name, path in walk_images(root).items()]
    elif root.is_file():  # whatever it is called: it was asked for
        return [ImageFile(root, root.name)]
    else:
        base, matches = _base(root), glob.glob(str(root), recursive=True)
        paths = sorted(path for path in map(Path, matches) if path.is_file())
        found = [
            ImageFile(path, path.relative_to(base).as_posix())
            for path in paths
            if path.name.lower().endswith(IMAGE_SUFFIXES)
        ]
        if found and len(found) < len(paths):
            logging.info("%d other files match %s; not looked at", len(paths) - len(found), images)
    if not found:
        raise InputError(
            f"--images={images}: no image found; expected a folder, a file or a pattern such as "
            f"'tiles/**/*.png', of files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return found


def _base(pattern: Path) -> Path:
    """The folder above the first part that stands for several."""
    base = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        base /= part
    return base


def patient_of(found: ImageFile, settings: InferenceSettings) -> str:
    """Whose an image is, if its name tells it; else ''.

    Args:
      found: the image.
      settings: of the network: `patient_pattern`, a regular expression as in
        `data.patient_pattern`; and for names of BreakHis `patient_group`, 'case70' by default.
    """
    if pattern := settings.patient_pattern:
        match = re.search(pattern, os.path.join("/", found.path.as_posix()))
        return (match.group(1) if match.re.groups else match.group()) or "" if match else ""
    name = parse_name(found.path.name)
    if name is None:
        return ""
    if settings.patient_group == "id82":
        return f"{name.subtype}/{name.slide_id}"
    return name.slide_id if settings.patient_group == "slide81" else name.case
