"""A thread that writes values, and only the latest where they come faster than it can write."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestWriter(Generic[T]):
    """Writes values one after the other in a thread of its own.

    While one is written, at most one waits; a newer value takes the place of the waiting one.
    """

    def __init__(self, write: Callable[[T], None]):
        """Prepares the thread.

        Args:
          write: writes a value; what it raises is raised again by `submit` or `flush`.
        """
        self._write = write
        self._thread = ThreadPoolExecutor(1)
        # Guards the two attributes below, which the thread changes too.
        self._lock = threading.Lock()
        self._waiting: T | None = None
        self._is_writing = False
        self._future: Future[None] | None = None

    @property
    def waiting(self) -> T | None:
        """The value that waits, if any."""
        return self._waiting

    @property
    def is_writing(self) -> bool:
        """Whether the thread is at work."""
        return self._is_writing

    def submit(self, value: T) -> None:
        """Has a value written; raises what the write before it raised."""
        with self._lock:
            if self._is_writing:
                self._waiting = value
                return
        self.flush()
        self._is_writing = True
        self._future = self._thread.submit(self._write_all, value)

    def flush(self) -> None:
        """Waits until all is written; raises what the last write raised, once."""
        future, self._future = self._future, None
        if future is not None:
            future.result()

    def _write_all(self, value: T | None) -> None:
        try:
            while value is not None:
                self._write(value)
                with self._lock:
                    value, self._waiting = self._waiting, None
                    self._is_writing = value is not None
        except BaseException:
            with self._lock:
                self._is_writing, self._waiting = False, None
            raise
