"""Work on a sequence of items in order, a bounded number of them ahead: in threads, on devices."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
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
    size: Callable[[Item], int] = lambda item: 0,
    max_size: int = 0,
) -> Generator[Result, None, None]:
    """Yields `function(item)` for each item, computed in threads before it is asked for.

    `ThreadPoolExecutor.map` submits all items at once, so results would pile up in memory behind a
    slow consumer. Here `items` is advanced in the consumer's thread and only as far as `depth`.

    Args:
      function: called in threads, so useful if it releases the GIL, as file access and Pillow's
        decoder do. What it raises is raised when its result is due.
      items: in the order of the results.
      depth: how many results may be computed or in work before the first of them is taken.
      threads: by default as many as there are cores.
      size: of an item, in any unit.
      max_size: of all items in work together; a larger one waits until it is alone.
    """
    results: deque[tuple[int, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    in_work = 0

    def take() -> Result:
        nonlocal in_work
        item_size, future = results.popleft()
        in_work -= item_size
        return future.result()

    try:
        for item in items:
            item_size = size(item)
            while results and item_size and in_work + item_size > max_size:
                yield take()
            results.append((item_size, pool.submit(function, item)))
            in_work += item_size
            if len(results) >= depth:
                yield take()
        while results:
            yield take()
    finally:  # also when the consumer stops early and closes the generator
        pool.shutdown(cancel_futures=True)


def in_flight(results: Iterable[Result], count: int = 2) -> Iterator[Result]:
    """Yields results late, so that work on `count` of them has begun before the first is read.

    JAX returns an array before it is computed, and reading its values waits for that. If the values
    of one batch are read before the next batch is dispatched, the device waits for the host.

    Args:
      results: an iterator that begins the work on a result when it is asked for it, such as a
        generator that dispatches a computation and a copy to the host. What it raises, an
        interrupt included, is raised after the results before it, so that no work is lost.
      count: how many results may be in work, and so in memory.
    """
    source, begun = iter(results), deque[Result]()
    error: BaseException | None = None
    while True:
        try:
            begun.append(next(source))
        except StopIteration:
            break
        except BaseException as raised:
            error = raised
            break
        if len(begun) >= count:
            yield begun.popleft()
    yield from begun
    if error is not None:
        raise error
