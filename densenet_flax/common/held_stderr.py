"""Holds back for a moment what C++ code writes to stderr, so that one line can replace an abort."""

import ctypes
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

from absl import logging

# What libraries say about an abort follows within milliseconds.
_SECONDS = 0.5


class HeldStderr:
    """File descriptor 2, passed on half a second later; `sys.stderr` of Python is not delayed.

    JAX's coordination client ends a process that has lost another one by `abort`, from a thread of
    its own, after 20 lines and a stack trace. There is no Python call to prevent it: the callback
    that its constructor takes fails on the conversion of its argument (jaxlib 0.10 and 0.12).
    """

    def __init__(self, explain: Callable[[str], str | None]):
        """Begins to hold; until the process ends or `release` is called.

        Args:
          explain: takes what was written in the last moments, and returns the line with which the
            process ends, in place of the abort that follows; or None to pass everything on.
        """
        self._explain = explain
        self._held, self._since, self._lock = b"", 0.0, threading.Lock()
        sys.stderr.flush()
        self._stderr = os.dup(2)
        self._pipe, write_end = os.pipe()
        os.set_blocking(self._pipe, False)
        os.dup2(write_end, 2)
        os.close(write_end)
        sys.stderr = os.fdopen(os.dup(self._stderr), "w", 1, errors="backslashreplace")
        logging.get_absl_handler().python_handler.setStream(sys.stderr)
        if faulthandler.is_enabled():
            faulthandler.enable(sys.stderr)
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_abort)
        # Python's own handlers run in the main thread, after the signal; this one while it lasts.
        _libc_signal(ctypes.cast(self._handler, ctypes.c_void_p))
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Passes on what is held; from now on nothing is held and an abort is an abort."""
        os.dup2(self._stderr, 2)
        self._released.set()
        self._thread.join(2 * _SECONDS)
        self._read()
        self._pass_on()
        _libc_signal(None)

    def _relay(self) -> None:
        while not self._released.is_set():
            if select.select([self._pipe], [], [], _SECONDS)[0]:
                self._read()
            # Between its text and the abort a library looks up the symbols of its stack, for
            # seconds on a busy machine.
            self._end_if_explained()
            if time.monotonic() - self._since >= _SECONDS:
                self._pass_on()
            else:
                time.sleep(0.02)

    def _read(self) -> None:
        with self._lock:
            while select.select([self._pipe], [], [], 0)[0]:
                self._since = self._since if self._held else time.monotonic()
                if not (data := os.read(self._pipe, 1 << 16)):
                    break
                self._held += data

    def _pass_on(self) -> None:
        with self._lock:
            data, self._held = self._held, b""
        while data:
            data = data[os.write(self._stderr, data) :]

    def _on_abort(self, _: int) -> None:
        self._read()
        self._end_if_explained()
        self._pass_on()
        _libc_signal(None)
        os.abort()

    def _end_if_explained(self) -> None:
        line = self._explain(self._held.decode(errors="replace"))
        if line is not None:
            with self._lock:  # one thread says it
                sys.stdout.flush()
                os.write(self._stderr, line.encode() + b"\n")
                os._exit(1)


def _libc_signal(handler: ctypes.c_void_p | None) -> None:
    """Sets the C-level handler of SIGABRT; None is the default action."""
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    function(signal.SIGABRT, handler)
