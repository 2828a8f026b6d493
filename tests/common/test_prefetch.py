import threading
import time

import pytest

from densenet_flax.common.prefetch import in_flight, prefetch


def test_results_come_in_order_and_not_far_ahead():
    started = []

    def work(number):
        started.append(number)
        time.sleep(0.001 * (number % 3))
        return number**2

    for taken, result in enumerate(prefetch(work, iter(range(1000)), depth=10)):
        assert result == taken**2
        assert len(started) <= taken + 10
        if taken == 100:
            break
    assert len(started) < 120


def test_items_are_taken_in_the_thread_of_the_consumer():
    threads = set()

    def items():
        for number in range(20):
            threads.add(threading.get_ident())
            yield number

    assert list(prefetch(lambda number: number, items(), depth=4, threads=3)) == list(range(20))
    assert threads == {threading.get_ident()}


def test_an_error_is_raised_when_its_result_is_due():
    def work(number):
        if number == 3:
            raise ValueError("three")
        return number

    results = prefetch(work, range(10), depth=8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_closing_ends_the_threads():
    before = threading.active_count()
    results = prefetch(lambda number: number, range(100), depth=5)
    next(results)
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before


def test_no_items():
    assert list(prefetch(str, [], depth=3)) == []


def test_work_in_flight_is_bounded_and_comes_in_order():
    begun = []

    def results():
        for number in range(6):
            begun.append(number)
            yield number

    for number, result in enumerate(in_flight(results(), 3)):
        assert result == number
        assert begun == list(range(min(number + 3, 6)))  # the next two have begun before it is read
    assert list(in_flight([], 2)) == []
    assert list(in_flight([1], 2)) == [1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_loses_no_work_in_flight(error):
    def results():
        yield from range(4)
        raise error

    begun = in_flight(results(), 3)
    assert [next(begun) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(error):
        next(begun)
