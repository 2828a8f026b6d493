"""Holds back for a moment what C++ code writes to stderr, so that one line can replace an abort."""

import contextlib
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
        sys.stderr.flush()
        self._stderr = os.dup(2)
        self._pipe, write_end = os.pipe()
        os.dup2(write_end, 2)
        os.close(write_end)
        sys.stderr = os.fdopen(os.dup(self._stderr), "w", 1, errors="backslashreplace")
        logging.get_absl_handler().python_handler.setStream(sys.stderr)
        if faulthandler.is_enabled():
            faulthandler.enable(sys.stderr)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()
        # In C, because Python's own handlers run in the main thread and after the signal.
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._on_abort)
        self._previous = _set_abort_handler(ctypes.cast(self._handler, ctypes.c_void_p).value)

    def release(self) -> None:
        """Passes on what is held; from now on nothing is held and an abort is an abort."""
        os.dup2(self._stderr, 2)
        self._released.set()
        self._thread.join(2 * _SECONDS)
        _set_abort_handler(self._previous)

    def _relay(self) -> None:
        held, since = b"", 0.0
        while True:
            ready = bool(select.select([self._pipe], [], [], _SECONDS / 10)[0])
            data = os.read(self._pipe, 1 << 16) if ready else b""
            since = since if held else time.monotonic()
            held += data
            # The end of the pipe; processes that this one started may keep it open.
            ended = not data and (ready or self._released.is_set())
            due = time.monotonic() - since >= _SECONDS
            # Before the abort, for which a library looks up the symbols of its stack, for seconds
            # on a busy machine; but not in the middle of the text.
            if held and not ended and (due or not data):
                self._end_if_explained(held.decode(errors="replace"))
            if due or ended:
                self._pass_on(held)
                held = b""
            if ended:
                return

    def _pass_on(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            while data:
                data = data[os.write(self._stderr, data) :]

    def _end_if_explained(self, text: str) -> None:
        line = self._explain(text)
        if line is not None:
            sys.stdout.flush()
            self._pass_on(line.encode() + b"\n")
            os._exit(1)

    def _on_abort(self, _: int) -> None:
        time.sleep(2 * _SECONDS)  # `_relay` passes on what is held, or ends the process
        _set_abort_handler(self._previous)
        os.abort()


def _set_abort_handler(handler: int | None) -> int | None:
    """Sets the address of the C-level handler of SIGABRT; returns the one before.

    None is the default action.
    """
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    return function(signal.SIGABRT, handler)
