"""Archives as streams of their members, whatever they are called; nothing is unpacked to disk.

Headers are not trusted: no size counts that is more than is left of the file, or than a tile may
have, and what grows twentyfold when it is inflated is no archive of images.
"""

import contextlib
import functools
import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from densenet_flax.common.errors import InputError
from densenet_flax.common.reading import check_regular, reading
from densenet_flax.data.images.formats import MAX_BYTES, SLIDE

# The name of a member, and a function that returns its content before the next one is asked for.
Member: TypeAlias = tuple[str, Callable[[], bytes]]

_GZIP, _ZIP = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06")
_BLOCK = 2**20
# Of a header: names have at most thousands of bytes.
_MAX_HEADER = 2**20
# Images hardly get smaller in an archive, but zeros do.
_MAX_INFLATED, _MAX_RATIO = 2**29, 20
_KINDS_OF_ZIP = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def is_archive(path: Path) -> bool:
    """Whether the content of a file is that of an archive; InputError if it cannot be read."""
    with reading(path):
        check_regular(path, path)
        with open(path, "rb") as file:
            start = file.read(512)
    return start.startswith((_GZIP, *_ZIP)) or _is_tar(start)


def read_archive(path: Path) -> Iterator[Member]:
    """Yields the files in a zip, tar or tar.gz; links, folders and devices are not files.

    A function that returns a content raises an `InputError` if that is damaged or too large.

    Raises:
      InputError: the archive is damaged or cut short, or a name leads out of its folder.
    """
    with _errors_of(path):
        with open(path, "rb") as file:
            is_zip = file.read(4) in _ZIP
        for name, read in _read_zip(path) if is_zip else _read_tar(path):
            if name.startswith("/") or ".." in name.split("/"):
                raise InputError(
                    f"{path}: {name} climbs out of the archive's folder; download the archive again"
                )
            yield name, read


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Raises an `InputError` for whatever a library raises on a damaged archive."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the libraries document some of them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path}: the archive is damaged or cut short ({reason}); download it again"
        ) from error


def _is_tar(start: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(start, tarfile.ENCODING, "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _read_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        # In the order of the file, as a stream.
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            if not info.is_dir() and not is_link:
                yield info.filename, functools.partial(_read_zip_member, path, archive, info)


def _read_zip_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    where = f"{path}: {info.filename}"
    if info.compress_type not in _KINDS_OF_ZIP or info.flag_bits & 1:
        raise InputError(f"{where}: is encrypted or compressed in a way that is not read")
    _check_size(where, info.file_size)
    # One member may be damaged and the others whole: each has a checksum.
    with _errors_of(Path(where)), archive.open(info) as file:
        return file.read()  # at most its size


def _read_tar(path: Path) -> Iterator[Member]:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        is_gzip = file.read(2) == _GZIP
        file.seek(0)
        content = stack.enter_context(gzip.open(file)) if is_gzip else file
        stream = _Stream(content, path.stat().st_size)
        archive: Any = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
        for member in archive:
            archive.members.clear()  # it would keep them all
            if member.isreg():
                yield (
                    member.name,
                    functools.partial(_read_tar_member, path, archive, stream, member),
                )
        # tarfile takes a damaged or missing header for the end: there, two blocks are zero.
        if stream.last_read != bytes(tarfile.BLOCKSIZE):
            raise EOFError("its end is missing")
        # Only gzip knows whether all came through, which it says at its end.
        while stream.read(_BLOCK):
            pass


def _read_tar_member(
    path: Path, archive: tarfile.TarFile, stream: "_Stream", member: tarfile.TarInfo
) -> bytes:
    where = f"{path}: {member.name}"
    if member.issparse():  # it may say that it is larger than any memory
        raise InputError(f"{where}: is stored as a sparse file; pack the archive without --sparse")
    _check_size(where, member.size)
    with _errors_of(path), stream.longer_reads():
        file = archive.extractfile(member)
        data = file.read() if file else b""
        if len(data) < member.size:
            raise EOFError("unexpected end of data")
    return data


def _check_size(where: str, size: int) -> None:
    if not 0 <= size <= MAX_BYTES:
        raise InputError(f"{where}: has {size / 1e6:,.0f} MB: {SLIDE}")


class _Stream(io.RawIOBase):
    """A file for tarfile: read from its beginning to its end, and never more at once than fits.

    Attributes:
      last_read: what the last call of `read` returned.
    """

    def __init__(self, file: BinaryIO | gzip.GzipFile, size: int):
        """Takes a file, and the size that it has on disk, where it may be compressed."""
        self._file, self._position = file, 0
        self._max_position = max(_MAX_INFLATED, _MAX_RATIO * size)
        self._max_read = _MAX_HEADER
        self.last_read = b""

    @contextlib.contextmanager
    def longer_reads(self) -> Iterator[None]:
        """Allows reads of the size of a tile and not only of a header."""
        self._max_read = MAX_BYTES
        try:
            yield
        finally:
            self._max_read = _MAX_HEADER

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or position < self._position:
            raise tarfile.ReadError("its headers lead backwards")
        while self._position < position and self.read(min(_BLOCK, position - self._position)):
            pass
        return self._position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._max_read:
            raise tarfile.ReadError(f"a header says {size} bytes")
        # Blocks of a stream that is shorter than its headers say are not allocated in vain.
        parts, missing = [], size
        while missing and (part := self._file.read(min(missing, _BLOCK))):
            parts.append(part)
            missing -= len(part)
            self._position += len(part)
            if self._position > self._max_position:
                limit = f"{self._max_position / 1e6:,.0f} MB"
                raise tarfile.ReadError(f"it inflates to more than {limit}, which no images do")
        self.last_read = b"".join(parts)
        return self.last_read
