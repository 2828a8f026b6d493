"""What the pictures of saliency maps are called: each image has its own, and none is replaced."""

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.data.sources.files import OUTPUT_MARK
from densenet_flax.inference.batch.image_files import ImageFile
from densenet_flax.storage.atomic import writing

_MAX_NAME_BYTES = 255  # of a file, in most file systems


def overlay_name(name: str, names: Collection[str]) -> str:
    """Returns the name of the picture of an image, of all images `names`.

    It is the image's own, with '.png' behind it if it has another suffix: a folder may hold both
    x.jpg and x.png.
    """
    if not name.endswith(".png"):
        name += ".png"
        while name in names:  # of x.jpg, where there is an x.jpg.png
            name = f"{name.removesuffix('.png')}~.png"
    folder, file = os.path.split(name)
    if len(os.fsencode(file)) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
        start = os.fsencode(file)[: _MAX_NAME_BYTES - 30].decode(errors="ignore")
        file = f"{start}~{digest}.png"
    return os.path.join(folder, file)


def check_overlays(folder: Path, files: Sequence[ImageFile]) -> None:
    """Raises an `InputError` if a picture would be written over one of the images."""
    if not folder.exists():
        return
    names = {file.name for file in files}
    images = {_identity(file.path) for file in files} - {None}
    for file in files:
        target = folder / overlay_name(file.name, names)
        if _identity(target) in images:
            raise InputError(
                f"--overlays={folder}: {target} is one of the images; choose another folder"
            )


def mark_overlays(folder: Path) -> None:
    """Marks a new or empty folder, so that the pictures in it are not taken for images."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            (folder / OUTPUT_MARK).touch()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
