"""What is fuzzed: files that the package wrote, the function that reads them, and what is right."""

import contextlib
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tests.fuzz.mutation import Mutator, cut, damage, flip_bit

# The content of each file of a sample by its path in the sample's folder.
Files: TypeAlias = Mapping[str, bytes]

RANDOM_DAMAGE: Sequence[Mutator] = (damage, damage, damage, flip_bit, flip_bit, cut)


@dataclasses.dataclass(frozen=True)
class Target:
    """Files of a kind.

    Attributes:
      name: 'kind/form'.
      make: writes a sample into a folder; more samples of the form have folders of their own.
      read: reads the folder of a sample with the package, and returns all that it holds.
      mutators: one of them is drawn for each input. A mutator that is named below is one of these.
      exact: the mutators whose damage the form can detect: what is accepted after them must be
        what was written.
      accepts: of what was written and what was read, why the second must not be accepted after any
        damage; '' if it may be.
      matches: in place of equality, for `exact`; '' or why not.
      damaged: which files of a sample are damaged; all by default.
      starts_anew: whether reading leaves other files in the folder.
      unguarded: a context in which `read` is faster and may end the process: input that does is
        read again without it, in a process of its own.
      imports: libraries that are imported before the workers start; without one it is left out.
      weight: how much of the time it gets in a long run.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    mutators: Sequence[Mutator] = RANDOM_DAMAGE
    exact: Sequence[Mutator] = ()
    accepts: Callable[[Any, Any], str] = lambda written, read: ""
    matches: Callable[[Any, Any], str] = lambda written, read: difference(written, read)
    damaged: Callable[[str], bool] = lambda path: True
    starts_anew: bool = False
    unguarded: Callable[[], contextlib.AbstractContextManager[object]] | None = None
    imports: Sequence[str] = ()
    weight: float = 1.0

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A damaged sample."""

    sample: str
    path: str  # of the damaged file in the sample
    data: bytes
    mutator: Mutator


def make_mutant(target: Target, samples: Mapping[str, Files], seed: int, number: int) -> Mutant:
    """The input of this number; it depends on nothing else."""
    rng = random.Random(f"{seed} {target.name} {number}")
    sample = rng.choice(sorted(samples))
    path = rng.choice(sorted(filter(target.damaged, samples[sample])))
    mutator, data = rng.choice(target.mutators), samples[sample][path]
    return Mutant(sample, path, mutator(rng, data) if data else rng.randbytes(9), mutator)


def difference(written: Any, read: Any, where: str = "it") -> str:
    """Where two contents differ in a bit; '' if they do not."""
    if isinstance(written, Mapping) and isinstance(read, Mapping):
        if written.keys() != read.keys():
            return f"{where} has other names"
        pairs = ((difference(written[k], read[k], f"{where}[{k!r}]")) for k in written)
        return next(filter(None, pairs), "")
    if isinstance(written, np.ndarray):
        is_same = (
            isinstance(read, np.ndarray)
            and (written.dtype, written.shape) == (read.dtype, read.shape)
            and written.tobytes() == read.tobytes()
        )
        return "" if is_same else f"{where} is another array"
    if isinstance(written, list | tuple) and isinstance(read, list | tuple):
        if len(written) != len(read):
            return f"{where} has {len(read)} parts, not {len(written)}"
        pairs = (
            difference(a, b, f"{where}[{i}]")
            for i, (a, b) in enumerate(zip(written, read, strict=True))
        )
        return next(filter(None, pairs), "")
    return "" if repr(written) == repr(read) else f"{where} is {read!r:.80}, not {written!r:.80}"
