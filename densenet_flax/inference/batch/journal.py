"""A journal of a long job on disk, one line per file, so that a stopped job can resume.

The first line is the key of the job. Each other line is an entry with a checksum of the key, of its
number and of itself, all as JSON: a line that is lost, moved or changed cannot be taken for that
of another file. Entries are appended and synced to disk batch by batch.
"""

import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from densenet_flax.storage.atomic import writing
from densenet_flax.storage.locks import close_locked, open_locked

IN_USE = "another process is writing it; wait for it, or choose another output"

_MAX_LINE = 1 << 20  # bytes; thousands of classes


class Entry(NamedTuple):
    """What is known about a file.

    Attributes:
      name: of the file.
      value: the probability of each class, or why the file was skipped.
      features: checksum of its features, which are kept in another file; None if there are none.
    """

    name: str
    value: list[float] | str
    features: int | None = None


class Journal:
    """The journal of one job, locked against other processes while it is open.

    Attributes:
      path: of its file.
      done: number of entries that earlier starts of the same job wrote.
      is_new: whether no earlier start of the same job has begun it.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        names: Sequence[str],
        is_complete: Callable[[Entry], bool] = lambda entry: True,
    ):
        """Opens the journal; nothing is changed before `begin`, which `append` calls if need be.

        What follows the first line that is not the entry of its file is done again.

        Args:
          path: of its file.
          key: a digest of the job.
          names: of the job's files, in the order of its entries.
          is_complete: whether what an entry stands for is on disk; called in their order.

        Raises:
          InputError: another process has it open, or it cannot be written.
        """
        self.path = path
        self._key = key
        self._file = open_locked(path, IN_USE)
        self.done, self._size = self._valid_lines(names, is_complete)
        self.is_new, self._has_begun = not self._size, False
        self._count = self.done

    def begin(self) -> None:
        """Drops what is not valid, and writes the key of a new job."""
        with writing(self.path):
            self._file.truncate(self._size)
        self._has_begun = True
        if self.is_new:
            self._write([json.dumps(self._key) + "\n"])

    def _valid_lines(
        self, names: Sequence[str], is_complete: Callable[[Entry], bool]
    ) -> tuple[int, int]:
        """Number of valid entries, and of bytes up to their end; 0, 0 for another job."""
        # A line has no end if a kill cut it short, or if it is no line of ours at all.
        if self._file.readline(_MAX_LINE) != f"{json.dumps(self._key)}\n".encode():
            return 0, 0
        size = self._file.tell()
        for number, name in enumerate(names):
            line = self._file.readline(_MAX_LINE)
            entry = self._parse(number, name, line)
            if entry is None or not is_complete(entry):
                if line.endswith(b"\n"):
                    logging.warning(
                        "%s: damaged after %d of its files; the others are done again",
                        self.path,
                        number,
                    )
                return number, size
            size += len(line)
        return len(names), size

    def _parse(self, number: int, name: str, line: bytes) -> Entry | None:
        """The entry of a line, if it is the one of this file as it was written."""
        try:
            *fields, _ = json.loads(line)
            entry = Entry(*fields)
        except (ValueError, TypeError, RecursionError):
            return None
        is_own = entry.name == name and self._line(number, entry).encode() == line
        return entry if is_own else None

    def _line(self, number: int, entry: Entry) -> str:
        fields = entry[:2] if entry.features is None else entry
        checksum = zlib.crc32(json.dumps([self._key, number, *fields]).encode())
        return json.dumps([*fields, checksum]) + "\n"

    def append(self, entries: Iterable[Entry]) -> None:
        """Adds entries and waits until they are on disk."""
        if not self._has_begun:
            self.begin()
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
            next(file, None)  # the key
            for line in itertools.islice(file, self._count):
                *fields, _ = json.loads(line)
                yield Entry(*fields)

    def close(self) -> None:
        """Closes the file and releases the lock."""
        close_locked(self._file, self.path)
