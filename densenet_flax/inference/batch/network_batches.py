"""Images on their way through the network: loaded in threads, in batches of one shape, in order."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from tqdm import tqdm

from densenet_flax.common.errors import InputError
from densenet_flax.common.prefetch import in_flight, prefetch
from densenet_flax.common.trees import Variables
from densenet_flax.inference.batch.journal import Entry
from densenet_flax.inference.classifier import Classifier, ForwardOutput

Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class LoadedImage:
    """An image as the network takes it and as its overlay shows it."""

    prepared: UInt8[np.ndarray, "H W 3"]
    displayed: UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Batch(Generic[Key]):
    """Images of which the readable ones are on their way through the network.

    Attributes:
      items: what each image is, and the image or why it cannot be read; in their order. About as
        many as the network takes at a time are readable.
      prepared: pixels of the readable ones as the network takes them; None if there are none.
      output: waits for the output for them.
    """

    items: Sequence[tuple[Key, LoadedImage | InputError]]
    prepared: UInt8[np.ndarray, "N H W 3"] | None = None
    output: Callable[[], ForwardOutput] | None = None

    @property
    def readable(self) -> list[tuple[Key, LoadedImage]]:
        """The images that can be read."""
        return [(key, image) for key, image in self.items if isinstance(image, LoadedImage)]

    def entries(
        self,
        name: Callable[[Key], str],
        output: ForwardOutput | None,
        checksums: Sequence[int | None] | None = None,
    ) -> list[Entry]:
        """Makes the journal's entry of each image, in their order.

        Args:
          name: of an image.
          output: of the network for the readable ones.
          checksums: of the features of the readable ones, if those are kept.
        """
        rows = iter(()) if output is None else iter(output.probability.tolist())
        sums = iter(checksums or ())
        return [
            Entry(name(key), str(image))
            if isinstance(image, InputError)
            else Entry(name(key), next(rows), next(sums, None))
            for key, image in self.items
        ]


def run_batches(
    classifier: Classifier,
    keys: Sequence[Key],
    load: Callable[[Key], LoadedImage | InputError],
    *,
    size: Callable[[Key], int] = lambda key: 0,
    max_size: int = 0,
    unit: str = "norm",
) -> Iterator[Batch[Key]]:
    """Yields batches while the network works on the next one; images are loaded further ahead.

    What cannot be read is logged.

    Args:
      classifier: the network.
      keys: what to load, in this order.
      load: loads and prepares an image; called in threads.
      size: of an image while it is loaded, in any unit.
      max_size: of all images that are being loaded at a time.
      unit: whose features are returned.
    """
    batch_size = classifier.images_per_batch
    # Two batches ahead: one that the network takes next, and one that is being decoded.
    images = prefetch(load, keys, depth=2 * batch_size, size=size, max_size=max_size)
    groups = _group(zip(keys, images, strict=True), batch_size)
    for batch in in_flight(_begin(classifier, items, unit) for items in groups):
        for _, image in batch.items:
            if isinstance(image, InputError):
                with tqdm.external_write_mode():  # above the progress bar
                    logging.warning("skipped: %s", image)
        yield batch


def _begin(
    classifier: Classifier, items: Sequence[tuple[Key, LoadedImage | InputError]], unit: str
) -> Batch[Key]:
    """Begins to run the network on the readable images of a batch."""
    readable = [image.prepared for _, image in items if isinstance(image, LoadedImage)]
    if not readable:
        return Batch(items)
    prepared = np.stack(readable)
    return Batch(items, prepared, classifier.begin_forward(prepared, unit=unit))


def _group(
    items: Iterable[tuple[Key, LoadedImage | InputError]], batch_size: int
) -> Iterator[list[tuple[Key, LoadedImage | InputError]]]:
    """Groups images so that the readable ones of each group are one batch for the network."""
    group: list[tuple[Key, LoadedImage | InputError]] = []
    readable = 0
    for item in items:
        group.append(item)
        readable += isinstance(item[1], LoadedImage)
        # The limit lets the journal have many unreadable files in a row, too.
        if readable == batch_size or len(group) >= 4 * batch_size:
            yield group
            group, readable = [], 0
    if group:
        yield group


def hash_variables(variables: Variables) -> "hashlib._Hash":
    """Begins a SHA-256 with the values of a network: one that was retrained has another."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest
