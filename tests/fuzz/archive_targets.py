"""Archives of images."""

import dataclasses
import functools
import gzip
import io
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from densenet_flax.data.breakhis.layout import find_source, read_images
from densenet_flax.data.sources.archives import read_archive
from tests.fuzz.image_targets import encode, tile
from tests.fuzz.mutation import cut, damage, flip_bit
from tests.fuzz.target import RANDOM_DAMAGE, Target, difference

_BLOCK = tarfile.BLOCKSIZE
_NAMES = [f"BreaKHis_v1/a/SOB_B_A-14-22549AB-40-00{i}.png" for i in range(1, 4)]
_SIZES = (b"77777777777\0", b"\xff" * 12, b"\x80" + bytes(3) + b"\xff" * 8, b"-0000000001\0")


def _write_tar(path: Path, mode: str, format: int) -> None:
    with tarfile.open(path, mode, format=format) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("BreaKHis_v1")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for number, name in enumerate(_NAMES):
            data = encode(tile(number), "PNG")
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if format == tarfile.PAX_FORMAT:
                info.pax_headers = {"comment": "x" * 50, "mtime": "1.5"}
            archive.addfile(info, io.BytesIO(data))
        if format == tarfile.GNU_FORMAT:
            archive.addfile(tarfile.TarInfo("long/" * 40 + "name.txt"))


def _make_tars(folder: Path, mode: str) -> None:
    for name, format in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)):
        (folder / name).mkdir()
        _write_tar(folder / name / f"a.tar{mode[1:].replace(':', '.')}", mode, format)


def _make_zip(folder: Path) -> None:
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        (folder / name).mkdir()
        with zipfile.ZipFile(folder / name / "a.zip", "w", method) as archive:
            archive.mkdir("BreaKHis_v1")
            for number, member in enumerate(_NAMES):
                archive.writestr(member, encode(tile(number), "PNG"))


def _read_members(folder: Path) -> list[tuple[str, bytes]]:
    return [(name, read()) for name, read in read_archive(next(folder.iterdir()))]


def _read_breakhis(folder: Path) -> list[tuple[str, bytes]]:
    return list(read_images(find_source(next(folder.iterdir()))))


def changed_headers(rng: random.Random, data: bytes) -> bytes:
    """Fields of a tar's headers, with the right checksum in most."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        header = rng.randrange(len(changed) // _BLOCK) * _BLOCK
        at = header + rng.randrange(_BLOCK)
        field = rng.randrange(6)
        if field == 0:
            changed[at] = rng.randrange(256)
        elif field == 1:
            changed[header + 124 : header + 136] = rng.choice(_SIZES)
        elif field == 2:
            changed[header + 156] = rng.choice(b"01234567xgLKSVDMNX\0")
        elif field == 3:
            changed[at : at + 8] = rng.choice((b"99999999", b"1 path=\n", b"GNU.spar", b"../../.."))
        elif field == 4:
            block = changed[header : header + _BLOCK]
            changed[header:header] = block * rng.choice((1, 2, 2000))
        else:
            changed[header + 386 : header + 495] = rng.randbytes(109)
        if rng.random() < 0.8:
            changed[header + 148 : header + 156] = b" " * 8
            checksum = sum(changed[header : header + _BLOCK])
            changed[header + 148 : header + 156] = b"%06o\0 " % checksum
    return bytes(changed)


def compressed_changed_headers(rng: random.Random, data: bytes) -> bytes:
    """As `changed_headers`, in a tar.gz; at times with gigabytes of zeros behind it."""
    content = changed_headers(rng, gzip.decompress(data))
    zeros = gzip.compress(bytes(2**22), 1) * 1000 if rng.random() < 0.002 else b""
    return gzip.compress(content, 1) + zeros


def _same_contents(written: Any, read: Any) -> str:
    """Names have no checksum in a zip, and neither has what kind of a member it is."""
    known = {data for _, data in written}
    return "" if {data for _, data in read} <= known else "a member has another content"


def _same_names(written: Any, read: Any) -> str:
    """A tar has a checksum for each header, which one bit changes, but none for the contents.

    Long names are contents.
    """
    names, others = (
        [n for n, _ in members if not n.endswith(".txt")] for members in (written, read)
    )
    return difference(names, others[: len(names)]) or difference(len(written), len(read))


_TAR_GZ = Target(
    "archives/tar.gz",
    functools.partial(_make_tars, mode="w:gz"),
    _read_members,
    (*RANDOM_DAMAGE, compressed_changed_headers, compressed_changed_headers),
    exact=(cut, flip_bit, damage),
)
_ZIP = Target(
    "archives/zip",
    _make_zip,
    _read_members,
    exact=(cut, flip_bit, damage),
    matches=_same_contents,
)
ARCHIVE_TARGETS = [
    Target(
        "archives/tar",
        functools.partial(_make_tars, mode="w"),
        _read_members,
        (*RANDOM_DAMAGE, *[changed_headers] * 4),
        exact=(cut, flip_bit),
        matches=_same_names,
    ),
    _TAR_GZ,
    _ZIP,
    dataclasses.replace(_TAR_GZ, name="archives/breakhis.tar.gz", read=_read_breakhis),
    dataclasses.replace(_ZIP, name="archives/breakhis.zip", read=_read_breakhis),
]
