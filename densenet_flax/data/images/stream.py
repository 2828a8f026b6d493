"""Images that are decoded when they are indexed, and batches of any images read ahead of their use.

For data that is larger than memory or disk. The pixels are those that preparation would write:
the same decoding, stain normalization and resizing, repeated in each epoch.
"""

import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from densenet_flax.common.errors import InputError
from densenet_flax.common.prefetch import prefetch
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.images.decode import decoded, resize
from densenet_flax.data.images.stain_normalization import Normalizer, make_normalizer

# What is known about an image: its `file` and whatever else its reader needs to find it.
Row: TypeAlias = dict[str, Any]
# What selects images, as of an array: a row number, a slice, row numbers or a mask.
Index: TypeAlias = int | slice | Sequence[int] | np.ndarray
# Returns the encoded image of a row, or its pixels where nothing is encoded. Those of streamed
# images can be pickled, so that worker processes get them.
Reader: TypeAlias = Callable[[Row], bytes | np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedImages:
    """Is indexed like a uint8 array [N, H, W, 3] and decodes what is asked for.

    Attributes:
      read: returns the encoded image of a row.
      columns: the rows of all images as columns, with `file`, which names an image in messages.
      size: (height, width).
      stain: settings of `make_normalizer`.
      bits: as in `decode`.
      threads: how many images are read and decoded at a time.
    """

    read: Reader
    columns: Mapping[str, Shaped[np.ndarray, "N"]]
    size: tuple[int, int]
    stain: JsonDict
    bits: int = 0
    threads: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    def __len__(self) -> int:
        return len(self.columns["file"])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return (len(self), *self.size, 3)

    def __getitem__(self, key: Index) -> UInt8[np.ndarray, "... H W 3"]:
        """Returns the image of a row number, or the images of a slice, list, array or mask.

        Raises:
          InputError: an image cannot be read or is damaged; the message names it.
        """
        rows = np.arange(len(self))[key]  # NumPy's rules for negative numbers, slices and masks
        if rows.ndim == 0:
            return self._decode(int(rows))
        images = np.empty((*rows.shape, *self.shape[1:]), np.uint8)
        decoded: Iterable[np.ndarray] = map(self._decode, rows.tolist())
        if self.threads > 1 and len(rows) > 1:
            threads = min(self.threads, len(rows))
            decoded = prefetch(self._decode, rows.tolist(), depth=2 * threads, threads=threads)
        for i, image in enumerate(decoded):
            images[i] = image
        return images

    def take(self, rows: Int[np.ndarray, "n"]) -> "StreamedImages":
        """Returns a subset of the images; nothing is decoded."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return dataclasses.replace(self, columns=columns)

    def __getstate__(self) -> dict[str, Any]:
        # The normalizer holds functions of libraries, which cannot be pickled; it is made again.
        return {key: value for key, value in self.__dict__.items() if key != "_normalize"}

    @functools.cached_property
    def _normalize(self) -> Normalizer:
        return make_normalizer(self.stain)

    def _decode(self, row_number: int) -> UInt8[np.ndarray, "H W 3"]:
        row = {name: column[row_number].item() for name, column in self.columns.items()}
        with decoded(self.read(row), row["file"], self.bits) as image:
            return resize(self._normalize(image), self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class JoinedImages:
    """Several arrays of images of one size, indexed like one array with all their rows."""

    parts: Sequence[UInt8[np.ndarray, "_ H W 3"]]
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)
    ndim: ClassVar[int] = 4

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        return (len(self), *self.parts[0].shape[1:])

    def __getitem__(self, key: Index) -> UInt8[np.ndarray, "... H W 3"]:
        """Returns the image of a row number, or the images of a slice, list, array or mask."""
        rows = np.arange(len(self))[key]  # NumPy's rules for negative numbers, slices and masks
        images = np.empty((*rows.shape, *self.shape[1:]), np.uint8)
        start = 0
        for part in self.parts:
            inside = (start <= rows) & (rows < start + len(part))
            images[inside] = part[rows[inside] - start]
            start += len(part)
        return images


# All images of a data set, uint8 [N, H, W, 3]: in memory, mapped, or decoded when indexed.
Images: TypeAlias = np.ndarray | StreamedImages | JoinedImages


def join_images(parts: Sequence[Images]) -> Images:
    """Several arrays of images as one, or several streams of one reader."""
    streams = [part for part in parts if isinstance(part, StreamedImages)]
    if not streams:
        return JoinedImages([np.asarray(part) for part in parts])
    columns = {
        name: np.concatenate([stream.columns[name] for stream in streams])
        for name in streams[0].columns
    }
    return dataclasses.replace(streams[0], columns=columns)


def prefetch_images(
    images: Images, batches: Sequence[Int[np.ndarray, "B"]], *, workers: int = 0, depth: int = 2
) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
    """Yields the images of one batch after the other, read while earlier ones are in use.

    The same images come in the same order, whatever `workers` is. Each call starts its own workers,
    which takes seconds: let one call cover many batches.

    Args:
      images: in memory, mapped or streamed.
      batches: row numbers of the images of each batch that this process reads; indexed as needed,
        in any thread, and with workers pickled.
      workers: processes that decode streamed images; 0 for threads. Arrays need none.
      depth: how many batches are read before they are asked for; with workers, by each.

    Raises:
      InputError: an image can no longer be read, or Grain is not installed.
    """
    if workers and isinstance(images, StreamedImages):
        yield from _prefetch_in_workers(images, batches, workers, depth)
    else:
        # One thread: streamed images decode with all cores already, and arrays only copy.
        yield from prefetch(images.__getitem__, batches, depth=depth + 1, threads=1)


def _prefetch_in_workers(
    images: StreamedImages, batches: Sequence[Int[np.ndarray, "B"]], workers: int, depth: int
) -> Iterator[UInt8[np.ndarray, "B H W 3"]]:
    try:
        import grain
        from absl import flags
    except ImportError as error:
        raise InputError(
            f"data.workers={workers}: needs Grain ({error}); pip install grain, or set "
            "data.workers=0"
        ) from error
    # With JAX loaded Grain reads absl's flags, which only a program that parses them has parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # A worker reads its next batch while Grain moves the last one: more threads would compete.
    images = dataclasses.replace(images, threads=1)
    loaded: Any = grain.MapDataset.source(batches).map(images.__getitem__)
    loaded = loaded.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    loaded = loaded.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=depth),
        worker_init_fn=_ignore_interrupts,
    )
    # Through pipes: containers often have 64 MB of shared memory, and what is in it at the end of
    # the program is reported as a leak.
    options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    iterator = iter(grain.experimental.WithOptionsIterDataset(loaded, options))
    try:
        yield from iterator
    finally:
        iterator.close()


def _ignore_interrupts(worker: int, workers: int) -> None:
    """Leaves Ctrl-C, which reaches every process of a terminal, to the parent process."""
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
