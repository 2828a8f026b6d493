"""Loading images with all cores, in order, and never far ahead of who takes them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def load_ahead(
    load: Callable[[Item], Loaded], items: Iterable[Item], depth: int
) -> Iterator[tuple[Item, Loaded]]:
    """Yields each item and what it was loaded as.

    Args:
      load: called in threads; Pillow lets others run while it decodes.
      items: in this order.
      depth: how many may be loaded before they are taken.
    """
    waiting: deque[tuple[Item, Future[Loaded]]] = deque()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) >= depth:
                first, loaded = waiting.popleft()
                yield first, loaded.result()
        while waiting:
            first, loaded = waiting.popleft()
            yield first, loaded.result()
    finally:
        pool.shutdown(cancel_futures=True)
