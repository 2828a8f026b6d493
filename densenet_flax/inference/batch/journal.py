"""A journal of a long job on disk, one line per file, so that a stopped job can resume.

The first line is the key of the job. Each other line is an entry with a checksum of the key, of its
number and of itself, all as JSON: a line that is lost, moved or changed cannot be taken for that
of another file. Entries are appended and synced to disk batch by batch.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import writing

_MAX_LINE = 1 << 20  # bytes; thousands of classes

# The name of a file, and the probability of each class or why the file was skipped.
Entry: TypeAlias = tuple[str, list[float] | str]


class Journal:
    """The journal of one job, locked against other processes while it is open.

    Attributes:
      path: of its file.
      done: number of entries that earlier starts of the same job wrote.
    """

    def __init__(self, path: Path, key: str, names: Sequence[str]):
        """Opens the journal to append to it, or starts it over if it has the key of another job.

        What follows the first line that is not the entry of its file is dropped, and is done again.

        Args:
          path: of its file.
          key: a digest of the job.
          names: of the job's files, in the order of its entries.

        Raises:
          InputError: another process has it open, or it cannot be written.
        """
        self.path = path
        self._key = key
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():  # opening a pipe would wait for ever
                raise InputError(f"{path}: not a regular file; remove it")
            # Appending creates the file, and keeps it until the lock shows whose it is.
            self._file = open(path, "a+b")  # noqa: SIM115
        # On the file itself: a lock file beside it would be left behind by a kill.
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InputError(
                f"{path}: another process is writing it; wait for it, or choose another output"
            ) from error
        self.done, size = self._valid_lines(names)
        with writing(path):
            self._file.truncate(size)
            if not size:
                self._write([json.dumps(key) + "\n"])
        self._count = self.done

    def _valid_lines(self, names: Sequence[str]) -> tuple[int, int]:
        """Number of valid entries, and of bytes up to their end; 0, 0 for another job."""
        self._file.seek(0)
        # A line has no end if a kill cut it short, or if it is no line of ours at all.
        if self._file.readline(_MAX_LINE) != f"{json.dumps(self._key)}\n".encode():
            return 0, 0
        size = self._file.tell()
        for number, name in enumerate(names):
            line = self._file.readline(_MAX_LINE)
            if line != self._valid_line(number, name, line):
                if line.endswith(b"\n"):
                    logging.warning(
                        "%s: damaged after %d of its files; the others are done again",
                        self.path,
                        number,
                    )
                return number, size
            size += len(line)
        return len(names), size

    def _valid_line(self, number: int, name: str, line: bytes) -> bytes | None:
        """The line as it was written, if it is the entry of this file."""
        try:
            entry_name, value, _ = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            return None
        return self._line(number, (name, value)).encode() if entry_name == name else None

    def _line(self, number: int, entry: Entry) -> str:
        checksum = zlib.crc32(json.dumps([self._key, number, *entry]).encode())
        return json.dumps([*entry, checksum]) + "\n"

    def append(self, entries: Iterable[Entry]) -> None:
        """Adds entries and waits until they are on disk."""
        lines = [self._line(number, entry) for number, entry in enumerate(entries, self._count)]
        self._write(lines)
        self._count += len(lines)

    def _write(self, lines: Sequence[str]) -> None:
        with writing(self.path):
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def entries(self) -> Iterator[Entry]:
        """Yields all entries in the order in which they were added."""
        with open(self.path, "rb") as file:
            next(file)  # the key
            for line in file:
                name, value, _ = json.loads(line)
                yield name, value

    def close(self) -> None:
        """Closes the file and releases the lock."""
        self._file.close()
