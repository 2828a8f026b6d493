"""Compiles the training steps of a run while the frozen part of the network runs."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from densenet_flax.training.train_step import TrainStep


class BackgroundCompiler:
    """A thread that compiles the steps of a run's stages in order."""

    def __init__(self) -> None:
        self._may_continue = threading.Event()

    @contextlib.contextmanager
    def compiling(self, jobs: Sequence[tuple[TrainStep, Mapping[str, Any]]]) -> Iterator[None]:
        """Compiles steps, each for batches of the shapes beside it; its context ends the thread."""
        thread = ThreadPoolExecutor(1)
        for number, (step, batch) in enumerate(jobs):
            # Where nothing else is left to do before the first step, the compilation of the second
            # would only take processors from it.
            if number == 1:
                thread.submit(self._may_continue.wait)
            # An error is not reported here: it comes again when the step first runs.
            thread.submit(step.compile, batch)
        try:
            yield
        finally:
            self._may_continue.set()
            thread.shutdown(wait=False, cancel_futures=True)

    def release(self) -> None:
        """Lets the later steps compile: the frozen part, or the first step, runs now."""
        self._may_continue.set()
