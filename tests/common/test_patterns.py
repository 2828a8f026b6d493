"""Patterns of others: they end, and what they find is what `re` finds."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from densenet_flax.common import patterns
from densenet_flax.common.errors import InputError
from densenet_flax.common.patterns import first_matches, pattern_fault


def test_the_first_group_or_the_whole_match():
    paths = ["benign/p17_003.png", "q.png", "Müller_1.png"]
    assert first_matches(r"/(\w+)_\d", paths, "key") == ["p17", "", "Müller"]
    assert first_matches(r"p\d+", paths, "key") == ["p17", "", ""]
    assert first_matches(r"p(x)?", paths, "key") == ["", "", ""]


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(?:.*){9}z", r"(a*)*\1\1b", "(?=(a|aa)+$)"])
def test_a_pattern_that_does_not_end_is_one_line(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(InputError, match=r"^patient_pattern=.*takes too long, such as on a{60}!;"):
        first_matches(pattern, ["x", "a" * 60 + "!"], "patient_pattern")
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_a_pattern_of_another_thread_ends_as_well():
    with ThreadPoolExecutor(1) as thread:
        paths = ["benign/p17_003.png", "Müller_1.png", "\udce9_1"]
        matches = thread.submit(first_matches, r"/(\w+)_\d", paths, "key")
        assert matches.result() == ["p17", "Müller", ""]
        endless = thread.submit(first_matches, "(a+)+$", ["x", "a" * 60 + "!"], "key")
        with pytest.raises(
            InputError, match=r"^key='\(a\+\)\+\$': takes too long, such as on a{60}"
        ):
            endless.result()


def test_time_that_other_threads_take_does_not_count():
    """The search alone takes 20 ms; the timer counts all threads."""
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=spin) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with patterns._processor_time(0.1):
            end = time.thread_time() + 0.02
            while time.thread_time() < end:
                pass
            time.sleep(0.2)
    finally:
        stop.set()


def test_faults_of_patterns():
    assert pattern_fault(r"(\d+)_") == "" == pattern_fault("")
    assert "unterminated" in pattern_fault("(")
    assert "1001 characters" in pattern_fault("a" * 1001)
    assert pattern_fault("(?:" * 330 + ")") != ""
