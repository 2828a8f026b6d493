"""A journal of a long job on disk, one line per file, so that a stopped job can resume.

The first line is the key of the job, each other line an entry, all as JSON. Entries are appended
and synced to disk batch by batch.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import writing

# The name of a file, and the probability of each class or why the file was skipped.
Entry: TypeAlias = tuple[str, list[float] | str]


class Journal:
    """The journal of one job, locked against other processes while it is open.

    Attributes:
      path: of its file.
      done: number of entries that earlier starts of the same job wrote.
    """

    def __init__(self, path: Path, key: str):
        """Opens the journal to append to it, or starts it over if it has the key of another job.

        Raises:
          InputError: another process has it open, or it cannot be written.
        """
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
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
        self.done, size = self._complete_lines(json.dumps(key))
        with writing(path):
            self._file.truncate(size)
        if not size:
            self.append([key])

    def _complete_lines(self, first_line: str) -> tuple[int, int]:
        """Number of complete entries, and of bytes up to their end; 0, 0 for another job."""
        # A kill can only cut the last line short. Without its line feed it is dropped, and its file
        # is processed again.
        self._file.seek(0)
        size = 0
        number = -1
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n") or (not number and line.decode().rstrip() != first_line):
                return max(0, number - 1), size
            size += len(line)
        return max(0, number), size

    def append(self, entries: Iterable[Entry | str]) -> None:
        """Adds entries and waits until they are on disk; not text, which is the key."""
        lines = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
        with writing(self.path):
            self._file.write(lines)
            self._file.flush()
            os.fsync(self._file.fileno())

    def entries(self) -> Iterator[Entry]:
        """Yields all entries in the order in which they were added."""
        with open(self.path, "rb") as file:
            next(file)  # the key
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        """Closes the file and releases the lock."""
        self._file.close()
