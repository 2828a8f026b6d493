"""Ends a run after a checkpoint where the operating system asks it to end."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from densenet_flax.common.errors import Stopped
from densenet_flax.common.sharding import multiple_processes


class StopSignal:
    """SIGTERM and SIGINT as a request that a run looks at, in place of ending the process.

    Attributes:
      number: the signal that came; 0 for none.
    """

    number = 0

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handles the signals within the context."""

        def remember(number: int, _: FrameType | None) -> None:
            self.number = number

        # Several processes must stop at the same step: there JAX's own handler tells them all, and
        # `Checkpoints.reached_preemption` asks it.
        # And Python lets the main thread alone handle signals.
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if is_main and not multiple_processes() else ()
        previous = {number: signal.signal(number, remember) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def stopped(self, step: int) -> Stopped:
        """The exception to raise when the checkpoint of `step` is saved."""
        reason = signal.Signals(self.number or signal.SIGTERM).name
        return Stopped(
            f"{reason}: stopped at step {step}, which is saved; run the same command again to "
            "resume"
        )
