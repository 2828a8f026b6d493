"""BreakHis as it lies on disk: its tree and its archive. Knows nothing of TFDS."""

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from densenet_flax.common.errors import InputError
from densenet_flax.common.prefetch import prefetch
from densenet_flax.data.breakhis.names import EXAMPLE_NAME, parse_name
from densenet_flax.data.images.decode import FAILURES, decode, is_plain
from densenet_flax.data.images.image_files import listing_digest, read_file, walk_images

ROOT = "BreaKHis_v1"
ARCHIVE = "BreaKHis_v1.tar.gz"


def find_source(path: str | os.PathLike[str]) -> Path:
    """The folder or archive to read, given any folder above, or the archive itself.

    Raises:
      InputError: nothing is there, or nothing that looks like BreakHis.
    """
    root = Path(path).expanduser()
    if os.path.isfile(root):
        if root.name.endswith((".tar.gz", ".tgz")):
            return root
        raise InputError(
            f"{root}: expected a folder with {ROOT} in it, or the archive {ARCHIVE}; "
            "this is some other file"
        )
    if not os.path.isdir(root):
        raise InputError(
            f"{root}: no such folder or archive; give the folder that holds {ROOT}, or {ARCHIVE}"
        )
    if walk_images(root, (".png",)):
        return root
    if os.path.isfile(root / ARCHIVE):
        return root / ARCHIVE
    raise InputError(
        f"{root}: no PNG images and no {ARCHIVE} in this folder; give the folder that holds {ROOT}"
    )


def list_images(source: Path) -> list[Path]:
    """All images of a folder, sorted by file name, each with a name that parses.

    Only what lies in a folder `BreaKHis_v1` counts where there is one, so that a folder above it
    may hold other pictures. Hidden files and all that is not a PNG are ignored.
    """
    found = list(walk_images(source, (".png",)).values())
    inside = [path for path in found if ROOT in path.parts]
    images = inside or found
    parsed = [path for path in images if parse_name(path.name)]
    if not parsed:
        raise InputError(
            f"{source}: none of its {len(images)} PNG files is named as in BreakHis "
            f"({images[0].name if images else 'there is none'}; expected names such as "
            f"{EXAMPLE_NAME})"
        )
    if len(parsed) < len(images):
        stranger = next(path for path in images if not parse_name(path.name))
        raise _bad_name(stranger)
    return sorted(parsed, key=lambda path: (path.name, path))


def list_names(source: Path) -> list[str]:
    """The file names of all images of a folder or archive; no image is decoded."""
    if source.is_dir():
        return sorted({path.name for path in list_images(source)})
    return sorted({os.path.basename(where) for where, _ in _from_archive(source)})


def source_key(source: Path) -> str:
    """A digest of what is listed at `source`: names, sizes and times, not content."""
    if source.is_file():
        return listing_digest(source, {source.name: source})
    images = {str(path.relative_to(source)): path for path in list_images(source)}
    return listing_digest(source, images)


def read_images(source: Path, skipped: list[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yields (file name, PNG bytes), every image decoded once to see that it is whole.

    Args:
      source: what `find_source` found.
      skipped: takes a line for each damaged image, which is then left out; None to raise.

    Raises:
      InputError: an image or the archive is damaged, or one name stands for two images.
    """
    stream = _from_archive(source) if source.is_file() else _from_folder(source)
    seen: dict[str, tuple[str, bytes]] = {}
    for where, data in _checked(stream, skipped):
        name = os.path.basename(where)
        digest = hashlib.sha256(data).digest()
        if name not in seen:
            seen[name] = where, digest
            yield name, data
        elif seen[name][1] != digest:
            raise InputError(
                f"{where}: another image of this name but with different content is "
                f"{seen[name][0]}; keep one of them"
            )
    if not seen:
        raise InputError(
            f"{source}: no BreakHis images in it; expected names such as {EXAMPLE_NAME}"
        )


def check_image(where: str, data: bytes) -> bytes:
    """Returns the bytes of an RGB PNG, or raises `InputError` if they are not a whole image."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()  # the checksums, to the last byte
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if is_plain(image):
                image.load()  # the pixels
                return data
        problem = ""
    except UnidentifiedImageError:
        problem = "is not a PNG image" if data else "is empty"
    except FAILURES as error:
        problem = f"is damaged or cut short ({error})"
    if problem:
        raise InputError(f"{where}: {problem}; copy the file again or take it out")
    # Saved by some tool as grey, palette, with alpha, 16 bits or turned; or of no tile's size.
    buffer = io.BytesIO()
    Image.fromarray(decode(data, where)).save(buffer, "PNG")
    return buffer.getvalue()


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png") and not name.startswith(".")


def _bad_name(where: object) -> InputError:
    return InputError(
        f"{where}: not a BreakHis file name (expected one such as {EXAMPLE_NAME}); rename it or "
        "move it out of the data set"
    )


def _from_folder(source: Path) -> Iterator[tuple[str, bytes]]:
    for path in list_images(source):
        yield str(path), read_file(path)


def _from_archive(source: Path) -> Iterator[tuple[str, bytes]]:
    """Streams the archive; nothing is ever unpacked to disk."""
    try:
        with gzip.open(source) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    name = os.path.basename(member.name)
                    if not member.isfile() or not _is_png(name) or "__MACOSX" in member.name:
                        continue
                    if not parse_name(name):
                        raise _bad_name(f"{source}: {member.name}")
                    if member.name.startswith("/") or ".." in member.name.split("/"):
                        raise InputError(
                            f"{source}: {member.name} climbs out of the archive's folder; this is "
                            "not the authors' archive: download it again"
                        )
                    file = archive.extractfile(member)
                    data = file.read() if file else b""
                    if len(data) < member.size:
                        raise EOFError("unexpected end of data")
                    yield f"{source}: {member.name}", data
            # tarfile takes a missing end for the end: only gzip knows whether all came through.
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{source}: the archive is damaged or cut short ({error}); download it again"
        ) from error


def _checked(
    stream: Iterator[tuple[str, bytes]], skipped: list[str] | None
) -> Iterator[tuple[str, bytes]]:
    """Checks images on all cores (Pillow decodes outside the GIL), keeping their order."""

    def check(item: tuple[str, bytes]) -> tuple[str, bytes | InputError]:
        try:
            return item[0], check_image(*item)
        except InputError as error:
            if skipped is None:
                raise
            return item[0], error

    for where, data in prefetch(check, stream, depth=4 * (os.cpu_count() or 1)):
        if isinstance(data, bytes):
            yield where, data
        elif skipped is not None:
            skipped.append(str(data))
