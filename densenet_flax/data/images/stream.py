"""Images that are decoded when they are asked for, and any images read ahead of their use.

For data that is larger than memory or disk. The pixels are those that preparation would have
written: the same decoding, stain normalisation and resizing, only later and again in each epoch.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.images import decode as image_files
from densenet_flax.data.images import stain_normalization as stains

if TYPE_CHECKING:
    from densenet_flax.data.dataset import Dataset

# From what is known about an image to its encoded bytes. Can be pickled, so that workers get it.
Reader = Callable[[dict[str, Any]], bytes]


class StreamedImages:
    """Looks like a uint8 array [N, H, W, 3] and decodes what is asked for.

    Index it with a number, a slice, or an array of row numbers.

    Attributes:
      shape: (N, H, W, 3).
      dtype: uint8.
      threads: how many images are read and decoded at a time.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        read: Reader,
        columns: Mapping[str, np.ndarray],
        size: tuple[int, int],
        stain: Mapping[str, Any],
        threads: int | None = None,
    ):
        """Takes where the images are and what is done to them.

        Args:
          read: gives the encoded image of a row, from its entry in each column.
          columns: arrays [N], with `file`, by which messages name an image.
          size: (height, width).
          stain: normalisation, as `stain.resolve` returns it.
          threads: how many images at a time; by default as many as there are cores.
        """
        self._read, self._columns, self._stain = read, dict(columns), dict(stain)
        self.shape = (len(columns["file"]), *size, 3)
        self.threads = threads or os.cpu_count() or 1
        self._normalise: stains.Normaliser | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """The images of these rows, uint8 [H, W, 3] of one and [n, H, W, 3] of several.

        Raises:
          InputError: an image cannot be read or is damaged; the message names it.
        """
        rows = np.arange(len(self))[key]
        if rows.ndim == 0:
            return self._decode(int(rows))
        found = np.empty((*rows.shape, *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            found[place] = self._decode(int(rows[place]))

        if self.threads == 1 or len(rows) < 2:
            for place in range(len(rows)):
                fill(place)
        else:
            with ThreadPoolExecutor(min(self.threads, len(rows))) as pool:
                list(pool.map(fill, range(len(rows))))
        return found

    def take(self, rows: Sequence[int] | np.ndarray) -> "StreamedImages":
        """The same of some rows only; nothing is decoded."""
        columns = {name: column[np.asarray(rows, int)] for name, column in self._columns.items()}
        return StreamedImages(self._read, columns, self.shape[1:3], self._stain, self.threads)

    def in_one_thread(self) -> "StreamedImages":
        """The same for a worker, of which there are several."""
        return StreamedImages(self._read, self._columns, self.shape[1:3], self._stain, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_normalise": None}  # made of libraries' functions: made anew

    def _decode(self, row: int) -> np.ndarray:
        if self._normalise is None:
            self._normalise = stains.normaliser(self._stain)
        known = {name: column[row].item() for name, column in self._columns.items()}
        decoded = image_files.decode(self._read(known), known["file"])
        return image_files.resize(self._normalise(decoded), self.shape[1:3])


Images = np.ndarray | StreamedImages


def images_ahead(
    dataset: "Dataset", wanted: Iterable[np.ndarray], *, workers: int = 0, ahead: int = 2
) -> Iterator[np.ndarray]:
    """Yields the images of one list of rows after the other, read while the last are in use.

    Workers are started anew by each call, which takes seconds: let one call cover many batches.
    However many there are, the same images come in the same order.

    Args:
      dataset: with images in memory, mapped or streamed.
      wanted: ids of the images of each batch; of several processes, of this one's part of it.
      workers: processes that decode what is streamed; 0 for threads of this one, which is also
        what reads arrays.
      ahead: how many batches are read before they are asked for; with workers, by each.

    Yields:
      uint8 [len(rows), H, W, 3].

    Raises:
      InputError: an image cannot be read any more, or Grain is not installed.
    """
    if workers < 0:
        raise InputError(f"data.workers={workers}: expected 0, for threads, or how many processes")
    images = dataset.images
    if workers and isinstance(images, StreamedImages):
        yield from _by_grain(images, list(wanted), workers, ahead)
        return
    waiting: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for rows in wanted:
                waiting.append(pool.submit(images.__getitem__, np.asarray(rows, int)))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Batches:
    """What Grain's workers read: batch number k is the images of the k-th list of rows."""

    def __init__(self, images: StreamedImages, wanted: Sequence[np.ndarray]):
        self._images, self._wanted = images, wanted

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, number: Any) -> np.ndarray:
        return self._images[np.asarray(self._wanted[number], int)]


def _by_grain(
    images: StreamedImages, wanted: Sequence[np.ndarray], workers: int, ahead: int
) -> Iterator[np.ndarray]:
    try:
        import grain
        from absl import flags
    except ImportError as error:
        raise InputError(
            f"data.workers={workers}: needs Grain ({error}); pip install grain, or set "
            "data.workers=0"
        ) from error
    # With JAX loaded Grain asks absl's flags, which only a program that parses them has parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    batches: Any = grain.MapDataset.source(_Batches(images.in_one_thread(), wanted))
    # A worker reads its next batch while Grain moves the last one: more threads would fight.
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead),
        worker_init_fn=_leave_signals_to_the_parent,
    )
    # Through pipes: containers often have 64 MB of shared memory, and what is in it at the end of
    # the program is reported as a leak.
    options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    found = iter(grain.experimental.WithOptionsIterDataset(batches, options))
    try:
        yield from found
    finally:
        found.close()


def _leave_signals_to_the_parent(worker: int, workers: int) -> None:
    """Ctrl-C reaches every process of a terminal; the trainer decides when its workers end."""
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
