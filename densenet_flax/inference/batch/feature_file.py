"""The features of a job's images so far, as raw float32 rows, until the job is complete."""

import os
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float

from densenet_flax.inference.batch.journal import IN_USE, Entry
from densenet_flax.storage.atomic import writing
from densenet_flax.storage.locks import close_locked, open_locked


class FeatureFile:
    """A file to which rows are appended, locked against other processes while it is open."""

    def __init__(self, path: Path, width: int):
        """Opens the file; an `InputError` says if another process has it open.

        Args:
          path: created if need be.
          width: numbers in a row.
        """
        self._path, self._row_bytes = path, 4 * width
        self._file = open_locked(path, IN_USE)
        self._checked = 0  # bytes

    def has_row(self, entry: Entry) -> bool:
        """Whether the next row is that of an entry; entries come in the order of the journal."""
        if isinstance(entry.value, str):  # a file that was skipped
            return True
        row = self._file.read(self._row_bytes)
        # Earlier versions wrote no checksum.
        if len(row) < self._row_bytes or entry.features not in (None, zlib.crc32(row)):
            return False
        self._checked += self._row_bytes
        return True

    def drop_rest(self) -> None:
        """Drops what follows the rows that were asked for."""
        with writing(self._path):
            self._file.truncate(self._checked)

    def append(self, features: Float[np.ndarray, "N C"]) -> list[int]:
        """Adds rows and waits until they are on disk; returns their checksums."""
        rows = [row.tobytes() for row in np.ascontiguousarray(features, np.float32)]
        with writing(self._path):
            self._file.write(b"".join(rows))
            self._file.flush()
            os.fsync(self._file.fileno())
        return [zlib.crc32(row) for row in rows]

    def close(self) -> None:
        """Closes the file and releases the lock."""
        close_locked(self._file, self._path)
