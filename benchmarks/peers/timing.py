"""The time of a call after warmup."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import median


def time_calls(call: Callable[[], np.ndarray], seconds: float) -> dict[str, Any]:
    """Times calls for `seconds`, and at least three, after two warmup calls.

    Args:
      call: returns features `[N, C]` on the host, so that no work is still pending.
      seconds: how long to measure.

    Returns:
      `call_seconds` (the median), `calls`, `first_call_seconds`, and the mean of the features.
    """
    started = time.perf_counter()
    features = call()
    first = time.perf_counter() - started
    call()
    seconds_of_calls: list[float] = []
    while len(seconds_of_calls) < 3 or sum(seconds_of_calls) < seconds:
        started = time.perf_counter()
        features = call()
        seconds_of_calls.append(time.perf_counter() - started)
    return {
        "call_seconds": median(seconds_of_calls),
        "calls": len(seconds_of_calls),
        "first_call_seconds": first,
        "mean_feature": float(np.mean(features, dtype=np.float64)),
    }


def images(batch: int, pixels: int) -> np.ndarray:
    """Returns random uint8 images `[N, H, W, 3]`, the same in every call."""
    return np.random.default_rng(0).integers(0, 256, (batch, pixels, pixels, 3), dtype=np.uint8)
