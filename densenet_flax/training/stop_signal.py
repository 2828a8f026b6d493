"""Ends a run after a checkpoint where the operating system asks it to end."""

import signal
from types import FrameType, TracebackType
from typing import Any

from densenet_flax.common.errors import Stopped
from densenet_flax.common.sharding import multiple_processes


class StopSignal:
    """Remembers SIGTERM and SIGINT within its context, in place of ending the process.

    Several processes must stop at the same step, so there JAX's own handler is left to tell them
    all; see `Checkpoints.reached_preemption`.

    Attributes:
      number: the signal that came; 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in () if multiple_processes() else (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.number = number

    def stopped(self, step: int) -> Stopped:
        """The exception to raise when a checkpoint of `step` is saved."""
        reason = signal.Signals(self.number or signal.SIGTERM).name
        return Stopped(
            f"{reason}: stopped at step {step}, which is saved; the same command goes on"
        )
