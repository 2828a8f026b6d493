"""BreakHis on disk: its tree of folders and its archive."""

import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.names import EXAMPLE_NAME, parse_name
from densenet_flax.data.images.decode import decode_in_threads, decoded
from densenet_flax.data.images.formats import IMAGE_SUFFIXES, open_image, read_image_file
from densenet_flax.data.images.samples import is_plain
from densenet_flax.data.sources.archives import is_archive, read_archive
from densenet_flax.data.sources.files import FileListing, list_files

ROOT = "BreaKHis_v1"
ARCHIVE = "BreaKHis_v1.tar.gz"
# What a folder without images is searched for: Kaggle calls its own archive.zip.
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
# Why images of a folder are left out, besides the reasons of `data.sources.files`.
_OUTSIDE, _COPY = f"images outside of {ROOT}", "copies of an image under the same name"


def find_source(path: str | os.PathLike[str]) -> Path:
    """Finds what to read: a folder above the images, or the archive if `path` is its folder.

    Raises:
      InputError: nothing is there, or nothing that looks like BreakHis.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f"{path}: no such folder or archive; give the folder that holds {ROOT}, or {ARCHIVE}"
        )
    if not path.is_dir():
        if is_archive(path):
            return path
        if path.name.lower().endswith(_ARCHIVE_SUFFIXES):
            raise InputError(
                f"{path}: the archive is damaged or cut short (it is neither zip, tar nor gzip); "
                "download it again"
            )
        raise InputError(
            f"{path}: expected a folder with {ROOT} in it, or the archive {ARCHIVE} (or a zip or "
            "tar); this is some other file"
        )
    # Of an archive with its unpacked folder beside it, the folder is read.
    listing = _list_folder(path)
    if listing.images:
        return path
    archives = [file for file in sorted(path.iterdir()) if _may_be_archive(file)]
    if path / ARCHIVE in archives:
        return path / ARCHIVE
    if len(archives) == 1:
        return archives[0]
    if archives:
        raise InputError(
            f"{path}: holds {archives[0].name} and {archives[1].name}; give one of them"
        )
    raise InputError(
        f"{path}: no images and no archive in this folder ({listing.describe()}); give the folder "
        f"that holds {ROOT}, or {ARCHIVE}"
    )


def _may_be_archive(file: Path) -> bool:
    is_named_so = file.name.lower().endswith(_ARCHIVE_SUFFIXES) and not file.name.startswith(".")
    return is_named_so and file.is_file() and is_archive(file)


def list_source(source: Path) -> FileListing:
    """Lists the images of a folder, sorted by file name, and why all else in it is left out.

    If a folder `BreaKHis_v1` is below it, only what is in there counts: a folder above may hold
    other pictures. Copies of an image are in both lists, as they are read to compare them. The
    listing of an archive is the archive itself; its members are known when it is read.

    Raises:
      InputError: an image is not named as in BreakHis, or there is none; a folder cannot be read.
    """
    if source.is_file():
        return FileListing(source.parent, {source.name: source}, {})
    listing = _list_folder(source)
    images = {name: path for name, path in listing.images.items() if ROOT in path.parts}
    images = images or dict(listing.images)
    unknown = [path for path in images.values() if not parse_name(path.name)]
    if len(unknown) == len(images):
        raise InputError(
            f"{source}: none of its {len(images)} images is named as in BreakHis "
            f"({unknown[0].name if unknown else 'there is none'}; expected names such as "
            f"{EXAMPLE_NAME}); for other data set data.name='folder'"
        )
    if unknown:
        raise _bad_name(unknown[0])
    images = dict(sorted(images.items(), key=lambda item: (item[1].name, item[1])))
    left_out = {**listing.left_out}
    left_out |= {name: _OUTSIDE for name in listing.images if name not in images}
    first_of_stem: dict[str, str] = {}
    for name, path in images.items():
        if first_of_stem.setdefault(_stem(path.name), name) != name:
            left_out[name] = _COPY
    return dataclasses.replace(listing, images=images, left_out=left_out)


def _list_folder(folder: Path) -> FileListing:
    listing = list_files(folder)
    listing.check_readable()
    return listing


def list_names(source: Path) -> list[str]:
    """Lists the file names of all images of a folder or archive; no image is decoded."""
    if source.is_dir():
        return sorted({path.name for path in list_source(source).images.values()})
    return sorted({os.path.basename(name) for name, _ in _list_archive(source)})


def read_images(
    source: Path, skipped: list[str] | None = None, bits: int = 0
) -> Iterator[tuple[str, bytes]]:
    """Yields the file name and the image as a PNG, once it was decoded as a check.

    Args:
      source: a folder or archive, as `find_source` returns it.
      skipped: gets a line for each damaged image, which is then left out; None to raise.
      bits: as in `decode`.

    Raises:
      InputError: an image or the archive is damaged, or two images have one name.
    """
    # Copies of an image do no harm (an unpacked archive beside a backup), two contents do.
    seen: dict[str, tuple[str, bytes]] = {}

    def check(location: str, data: bytes) -> tuple[str, bytes, bytes]:
        return location, hashlib.sha256(data).digest(), _to_png(location, data, bits)

    for location, digest, png in decode_in_threads(check, _read_encoded(source), skipped):
        name = os.path.basename(location)
        stem = _stem(name)
        if stem not in seen:
            seen[stem] = location, digest
            yield name, png
        elif seen[stem][1] != digest:
            raise InputError(
                f"{location}: another image of this name but with different content is "
                f"{seen[stem][0]}; keep one of them"
            )
    if not seen:
        raise InputError(
            f"{source}: no BreakHis images in it; expected names such as {EXAMPLE_NAME}"
        )


def _read_encoded(source: Path) -> Iterator[tuple[str, bytes | InputError]]:
    if source.is_dir():
        for path in list_source(source).images.values():
            yield str(path), _try(functools.partial(read_image_file, path))
    else:
        for name, read in _list_archive(source):
            yield f"{source}: {name}", _try(read)


def _stem(name: str) -> str:
    """What names of one image have in common: as .png and as .jpg it has two contents, too."""
    return os.path.splitext(name)[0].lower()


def _try(read: Callable[[], bytes]) -> bytes | InputError:
    try:
        return read()
    except InputError as error:
        return error


def _to_png(location: str, data: bytes, bits: int) -> bytes:
    """Returns an image as an RGB PNG of a tile's size, or raises an `InputError`."""
    with decoded(data, location, bits) as pixels:
        with open_image(data) as image:
            if image.format == "PNG" and is_plain(image):
                return data
        # A JPEG, or some tool saved it as gray, palette, with alpha, 16 bits or rotated.
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()


def _list_archive(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields the name and a function that reads the content of each image in an archive."""
    for name, read in read_archive(path):
        base = os.path.basename(name)
        is_hidden = base.startswith(".") or "__MACOSX" in name.split("/")
        if base.lower().endswith(IMAGE_SUFFIXES) and not is_hidden:
            if not parse_name(base):
                raise _bad_name(f"{path}: {name}")
            yield name, read


def _bad_name(location: object) -> InputError:
    return InputError(
        f"{location}: not a BreakHis file name (expected one such as {EXAMPLE_NAME}); rename it or "
        "move it out of the data set"
    )
