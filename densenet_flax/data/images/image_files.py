"""Image files on disk: found in folders, read, and summed up in a digest."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from densenet_flax.common.errors import InputError

# Lower-case endings of the files that count as images; other files are ignored.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def walk_images(root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Finds all image files under `root`, except hidden ones.

    Links to folders are followed, but no folder is entered twice, so circular links do no harm.

    Args:
      root: a folder.
      suffixes: lower-case endings of the files to find.

    Returns:
      Path of each image by its name relative to `root`, with '/' on every system; sorted by name.
    """
    images: dict[str, Path] = {}
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real_path = os.path.realpath(folder)
        if real_path in visited:
            subfolders.clear()
            continue
        visited.add(real_path)
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and name != "__MACOSX"
        )
        for file in files:
            if file.lower().endswith(suffixes) and not file.startswith("."):
                path = Path(folder, file)
                images[path.relative_to(root).as_posix()] = path
    return dict(sorted(images.items()))


def read_file(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
      InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def listing_digest(root: Path, files: Mapping[str, Path]) -> str:
    """Returns a digest of where files are, their names, sizes and times, but not their content.

    Raises:
      InputError: a file cannot be read.
    """
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    for name, path in files.items():
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
