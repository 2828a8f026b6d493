"""What the pictures of saliency maps are called: each image has its own, and none is replaced."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.formats import has_png_mark
from densenet_flax.data.sources.files import OUTPUT_MARK
from densenet_flax.inference.batch.image_files import ImageFile
from densenet_flax.storage.atomic import writing

_MAX_NAME_BYTES = 255  # of a file, in most file systems


def overlay_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the name of the picture of each image, by the name of the image.

    It is the image's own, with '.png' behind it if it has another suffix: a folder may hold both
    x.jpg and x.png. Names differ in file systems that ignore case or the form of accents, too, and
    none is that of a folder.
    """
    ordered = sorted(names, key=lambda name: (not name.endswith(".png"), name))
    taken = {fold(folder) for name in ordered for folder in folders_above(name)}
    pictures = {}
    for name in ordered:
        picture = _shorten(name if name.endswith(".png") else f"{name}.png")
        while fold(picture) in taken:  # of x.jpg, where there is an x.jpg.png
            picture = _shorten(f"{picture.removesuffix('.png')}~.png")
        taken.add(fold(picture))
        pictures[name] = picture
    return pictures


def fold(name: str) -> str:
    """The name as file systems compare it that ignore case and the form of accents."""
    return unicodedata.normalize("NFC", name).casefold()


def folders_above(name: str) -> list[str]:
    """The folders above a file, as far as its name goes."""
    return [name[:i] for i, letter in enumerate(name) if letter == "/"]


def _shorten(name: str) -> str:
    folder, file = os.path.split(name)
    if len(os.fsencode(file)) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
        start = os.fsencode(file)[: _MAX_NAME_BYTES - 40].decode(errors="ignore")
        file = f"{start}~{digest}.png"
    return os.path.join(folder, file)


def check_overlays(folder: Path, files: Sequence[ImageFile]) -> None:
    """Raises an `InputError` if a picture would replace what this program did not draw."""
    if not folder.exists():
        return
    pictures = overlay_names(file.name for file in files)
    images = {_identity(file.path) for file in files} - {None}
    for file in files:
        target = folder / pictures[file.name]
        identity = _identity(target)
        if identity in images:
            raise InputError(
                f"--overlays={folder}: {target} is one of the images; choose another folder"
            )
        if identity is not None and not has_png_mark(target):
            raise InputError(
                f"--overlays={folder}: {target} is no picture that this program drew; choose "
                "another folder"
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
