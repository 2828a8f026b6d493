"""Readers with every fault that the fuzzer looks for; prints what it finds, as JSON."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from densenet_flax.common.errors import InputError
from tests.fuzz import campaign
from tests.fuzz.mutation import flip_bit
from tests.fuzz.target import Target

_CONTENT = b"content"


def _make(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "one" / "file").write_bytes(_CONTENT)


def _loop() -> None:
    while True:
        pass


def _fill_memory() -> None:
    bytearray(2 * campaign.MEMORY)


def _hide_memory() -> None:
    try:
        _fill_memory()
    except MemoryError as error:
        raise InputError("file: is damaged") from error


def _refuse_something() -> None:
    raise InputError("a file is damaged")


# What they do on damage; None to refuse the file.
_DAMAGED: dict[str, Callable[[], object] | None] = {
    "refuses": None,
    "refuses something": _refuse_something,
    "accepts": lambda: None,
    "raises": lambda: 1 / 0,
    "exits": lambda: exit(0),
    "loops": _loop,
    "sleeps": lambda: time.sleep(1000),
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "fills": _fill_memory,
    "hides": _hide_memory,
}


def _reader(on_damage: Callable[[], object] | None) -> Callable[[Path], bytes]:
    def read(folder: Path) -> bytes:
        content = (folder / "file").read_bytes()
        if content != _CONTENT:
            if not on_damage:
                raise InputError(f"{folder / 'file'}: is damaged")
            on_damage()
        return content

    return read


def main() -> None:
    campaign.CPU_SECONDS, campaign.WALL_SECONDS = 0.1, 1.0
    targets = {
        name: Target(name, _make, _reader(on_damage), [flip_bit], exact=[flip_bit])
        for name, on_damage in _DAMAGED.items()
    }
    run = campaign.Campaign(targets, seed=0, findings=None)
    for name in targets:
        run.run(name, 2)
    outcomes = {name: dict(counts.outcomes) for name, counts in run.counts.items()}
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
