"""BreakHis on disk: its tree of folders and its archive."""

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.names import EXAMPLE_NAME, parse_name
from densenet_flax.data.images.decode import decode_in_threads, decoded
from densenet_flax.data.images.formats import read_image_file
from densenet_flax.data.sources.files import list_files, listing_digest

ROOT = "BreaKHis_v1"
ARCHIVE = "BreaKHis_v1.tar.gz"


def find_source(path: str | os.PathLike[str]) -> Path:
    """Finds what to read: a folder above the images, or the archive if `path` is its folder.

    Raises:
      InputError: nothing is there, or nothing that looks like BreakHis.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if path.name.endswith((".tar.gz", ".tgz")):
            return path
        raise InputError(
            f"{path}: expected a folder with {ROOT} in it, or the archive {ARCHIVE}; "
            "this is some other file"
        )
    if not path.is_dir():
        raise InputError(
            f"{path}: no such folder or archive; give the folder that holds {ROOT}, or {ARCHIVE}"
        )
    # Of an archive with its unpacked folder beside it, the folder is read.
    if _list_png(path):
        return path
    if (path / ARCHIVE).is_file():
        return path / ARCHIVE
    raise InputError(
        f"{path}: no PNG images and no {ARCHIVE} in this folder; give the folder that holds {ROOT}"
    )


def list_images(folder: Path) -> list[Path]:
    """Lists the images of a folder, sorted by file name.

    If a folder `BreaKHis_v1` is below it, only what is in there counts: a folder above may hold
    other pictures. Hidden files and all that is not a PNG are ignored.

    Raises:
      InputError: a PNG is not named as in BreakHis, or there is none.
    """
    images = _list_png(folder)
    images = [path for path in images if ROOT in path.parts] or images
    unknown = [path for path in images if not parse_name(path.name)]
    if len(unknown) == len(images):
        raise InputError(
            f"{folder}: none of its {len(images)} PNG files is named as in BreakHis "
            f"({images[0].name if images else 'there is none'}; expected names such as "
            f"{EXAMPLE_NAME})"
        )
    if unknown:
        raise _bad_name(unknown[0])
    return sorted(images, key=lambda path: (path.name, path))


def _list_png(folder: Path) -> list[Path]:
    listing = list_files(folder)
    listing.check_readable()
    return [path for path in listing.images.values() if path.suffix.lower() == ".png"]


def list_names(source: Path) -> list[str]:
    """Lists the file names of all images of a folder or archive; no image is decoded."""
    if source.is_dir():
        return sorted({path.name for path in list_images(source)})
    return sorted({os.path.basename(location) for location, _ in _read_archive(source)})


def source_key(source: Path) -> str:
    """Returns a digest of the names, sizes and times of a folder's images, or of an archive."""
    if source.is_file():
        return listing_digest(source, {source.name: source})
    images = {str(path.relative_to(source)): path for path in list_images(source)}
    return listing_digest(source, images)


def read_images(source: Path, skipped: list[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yields the file name and the PNG bytes of each image, once it was decoded as a check.

    Args:
      source: a folder or archive, as `find_source` returns it.
      skipped: gets a line for each damaged image, which is then left out; None to raise.

    Raises:
      InputError: an image or the archive is damaged, or two images have one name.
    """
    if source.is_file():
        encoded = _read_archive(source)
    else:
        encoded = ((str(path), read_image_file(path)) for path in list_images(source))
    # Copies of an image do no harm (an unpacked archive beside a backup), two contents do.
    seen: dict[str, tuple[str, bytes]] = {}
    for location, data in decode_in_threads(_check_image, encoded, skipped):
        name = os.path.basename(location)
        digest = hashlib.sha256(data).digest()
        if name not in seen:
            seen[name] = location, digest
            yield name, data
        elif seen[name][1] != digest:
            raise InputError(
                f"{location}: another image of this name but with different content is "
                f"{seen[name][0]}; keep one of them"
            )
    if not seen:
        raise InputError(
            f"{source}: no BreakHis images in it; expected names such as {EXAMPLE_NAME}"
        )


def _check_image(image_file: tuple[str, bytes]) -> tuple[str, bytes]:
    """Returns location and content, as an RGB PNG of a tile's size, or raises an `InputError`."""
    location, data = image_file
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()  # the checksums, to the last byte
        # After `verify` Pillow needs the image opened again to decode it.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if is_plain_tile(image):
                image.load()  # the pixels
                return image_file
    except DECODE_ERRORS as error:
        raise InputError(f"{location}: {describe_damage(error, data, 'a PNG image')}") from error
    # Some tool saved it as gray, palette, with alpha, 16 bits or rotated; or it is no tile, which
    # raises.
    buffer = io.BytesIO()
    Image.fromarray(decode(data, location)).save(buffer, "PNG")
    return location, buffer.getvalue()


def _read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields location and content of each PNG; nothing is ever unpacked to disk."""
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if _is_image(path, member):
                        file = archive.extractfile(member)
                        data = file.read() if file else b""
                        if len(data) < member.size:
                            raise EOFError("unexpected end of data")
                        yield f"{path}: {member.name}", data
            # tarfile takes a missing end for the end: only gzip knows whether all came through.
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{path}: the archive is damaged or cut short ({error}); download it again"
        ) from error


def _is_image(path: Path, member: tarfile.TarInfo) -> bool:
    name = os.path.basename(member.name)
    is_png = name.lower().endswith(".png") and not name.startswith(".")
    if not member.isfile() or not is_png or "__MACOSX" in member.name:
        return False
    if not parse_name(name):
        raise _bad_name(f"{path}: {member.name}")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise InputError(
            f"{path}: {member.name} climbs out of the archive's folder; this is not the authors' "
            "archive: download it again"
        )
    return True


def _bad_name(location: object) -> InputError:
    return InputError(
        f"{location}: not a BreakHis file name (expected one such as {EXAMPLE_NAME}); rename it or "
        "move it out of the data set"
    )
