"""What a long job has done so far, line by line, so that it can be stopped and go on."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.storage.atomic import writing


class Journal:
    """A file with a line per item done; the first line says of which job.

    Attributes:
      path: of the file.
      done: items done by earlier starts of the same job.
    """

    def __init__(self, path: Path, key: str):
        """Opens the journal, goes on with it, or begins it anew if it is of another job.

        Args:
          path: of the file; made if need be.
          key: what the job is; any text.

        Raises:
          InputError: another process works on it, or the file cannot be written.
        """
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InputError(
                f"{path}: another process is writing it; wait for it, or choose another output"
            ) from error
        self.done = 0
        with writing(path):
            whole = self._whole(json.dumps(key))
            self._file.truncate(whole)  # a line that was cut short by a kill
            if not whole:
                self._append([key])

    def _whole(self, first: str) -> int:
        """Bytes up to the end of the last whole line; 0 if the job is another."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n") or (not number and line.decode().rstrip() != first):
                break
            self.done += bool(number)
            end += len(line)
        return end

    def add(self, items: Sequence[Any]) -> None:
        """Notes items as done, for good: a power cut does not undo it."""
        with writing(self.path):
            self._append(items)

    def _append(self, items: Sequence[Any]) -> None:
        self._file.write("".join(json.dumps(item) + "\n" for item in items).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self) -> Iterator[Any]:
        """All items, in the order in which they were done."""
        with open(self.path, "rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        """Lets go of the file, for the next who goes on."""
        self._file.close()
