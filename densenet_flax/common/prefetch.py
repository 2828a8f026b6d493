"""Work on a sequence of items in threads, in order and a bounded number of items ahead."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    depth: int,
    threads: int | None = None,
) -> Iterator[Result]:
    """Yields `function(item)` for each item, computed in threads before it is asked for.

    `ThreadPoolExecutor.map` submits all items at once, so results would pile up in memory behind a
    slow consumer. Here `items` is advanced in the consumer's thread and only as far as `depth`.

    Args:
      function: called in threads, so useful if it releases the GIL, as file access and Pillow's
        decoder do. What it raises is raised when its result is due.
      items: in the order of the results.
      depth: how many results may be computed or in work before the first of them is taken.
      threads: by default as many as there are cores.
    """
    results: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        for item in items:
            results.append(pool.submit(function, item))
            if len(results) >= depth:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    finally:  # also when the consumer stops early and closes the generator
        pool.shutdown(cancel_futures=True)
