"""A thread that writes values, and only the latest where they come faster than it can write."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestWriter(Generic[T]):
    """Writes values one after the other in a thread of its own.

    While one is written, at most one waits (`waiting`); a newer value replaces it.
    """

    def __init__(self, write: Callable[[T], None]):
        """Prepares the thread; what `write` raises is raised again by `submit` or `flush`."""
        self._write = write
        self._thread = ThreadPoolExecutor(1)
        # Guards the two attributes below, which the thread changes too.
        self._lock = threading.Lock()
        self.waiting: T | None = None
        self.is_writing = False
        self._future: Future[None] | None = None

    def submit(self, value: T) -> None:
        """Has a value written; raises what the write before it raised."""
        with self._lock:
            if self.is_writing:
                self.waiting = value
                return
        self.flush()
        self.is_writing = True
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
                    value, self.waiting = self.waiting, None
                    self.is_writing = value is not None
        except BaseException:
            with self._lock:
                self.is_writing, self.waiting = False, None
            raise
