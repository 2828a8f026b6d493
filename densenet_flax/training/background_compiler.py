"""Compiles the training steps of a run while the frozen part of the network runs."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from densenet_flax.training.train_step import TrainStep


class BackgroundCompiler:
    """A thread that compiles the steps of a run's stages in order; its context ends the thread.

    The first step is compiled at once. The others wait for `release`, because their compilation
    would take processors from that of the first if nothing else is left to do before it.
    """

    def __enter__(self) -> "BackgroundCompiler":
        self._thread = ThreadPoolExecutor(1)
        self._released = threading.Event()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def start(self, jobs: Sequence[tuple[TrainStep, Mapping[str, Any]]]) -> None:
        """Begins to compile steps, each for batches of the shapes beside it.

        An error is not reported: it comes again when the step first runs.
        """
        for number, (step, batch) in enumerate(jobs):
            if number == 1:
                self._thread.submit(self._released.wait)
            self._thread.submit(step.compile, batch)

    def release(self) -> None:
        """Allows to compile the later steps: the frozen part, or the first step, runs now."""
        self._released.set()
