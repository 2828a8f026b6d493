"""Image files on disk: listing folders, reading files, and the digest of a listing."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from densenet_flax.common.errors import InputError

# Lower-case endings of the files that count as images; other files are ignored.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def walk_images(root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Finds the files under `root` with one of the lower-case suffixes, except hidden ones.

    Returns:
      Path of each image by its name relative to `root`, with '/' on every system; sorted by name.
    """
    images: dict[str, Path] = {}
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        # Links to folders are followed, but no folder is entered twice: links may be circular.
        real_path = os.path.realpath(folder)
        if real_path in visited:
            subfolders.clear()
            continue
        visited.add(real_path)
        # In place, so that `os.walk` does not enter the others.
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and n != "__MACOSX")
        for file in files:
            if file.lower().endswith(suffixes) and not file.startswith("."):
                path = Path(folder, file)
                images[path.relative_to(root).as_posix()] = path
    return dict(sorted(images.items()))


@contextlib.contextmanager
def reading(name: object) -> Iterator[None]:
    """Raises an `InputError` where the operating system refuses to read a file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error


def read_file(path: Path, name: object = None) -> bytes:
    """Returns the content of a file; an `InputError` calls it `name`, by default its path."""
    with reading(name or path):
        return path.read_bytes()


def listing_digest(root: Path, files: Mapping[str, Path]) -> str:
    """Returns a digest of where files are, their names, sizes and times, but not their content."""
    digest = hashlib.sha256(os.fsencode(root.resolve()))
    for name, path in files.items():
        with reading(path):
            stat = path.stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
