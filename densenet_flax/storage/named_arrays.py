"""Many named arrays in few vectors, the form in which a checkpoint keeps the optimizer's state."""

# Orbax takes more than a millisecond for an array, however small, and an optimizer has a thousand.

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Shaped

Entry: TypeAlias = tuple[str, str, Sequence[int]]  # name, dtype and shape of an array


@dataclasses.dataclass(frozen=True)
class NamedVector:
    """A vector that holds arrays one after the other, each in row-major order."""

    values: Shaped[np.ndarray, " n"]
    contents: Sequence[tuple[str, Sequence[int]]]  # name and shape of each array, in order


def join(vectors: Iterable[NamedVector]) -> tuple[dict[str, np.ndarray], list[Entry]]:
    """Copies vectors into one for each dtype; also returns what is in them, in order."""
    by_dtype: dict[str, list[np.ndarray]] = {}
    entries: list[Entry] = []
    for vector in vectors:
        dtype = vector.values.dtype.name
        by_dtype.setdefault(dtype, []).append(vector.values)
        entries += [(name, dtype, list(shape)) for name, shape in vector.contents]
    return {dtype: np.concatenate(parts) for dtype, parts in by_dtype.items()}, entries


def split(joined: Mapping[str, np.ndarray], entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """The arrays by name, as views of the vectors that `join` made."""
    offsets = dict.fromkeys(joined, 0)
    arrays = {}
    for name, dtype, shape in entries:
        start, size = offsets[dtype], math.prod(shape)
        arrays[name] = joined[dtype][start : start + size].reshape(shape)
        offsets[dtype] = start + size
    return arrays
