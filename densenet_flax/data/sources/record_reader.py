"""Reads images of prepared TFDS data sets by number, still encoded."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.stream import Row

# The features of one example; its image is encoded.
Record: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RecordReader:
    """Reads encoded images of a prepared data set, also in another process.

    Attributes:
      folder: the prepared data set.
      feature: the name of its feature that is the image.
    """

    folder: str
    feature: str

    def __call__(self, row: Row) -> bytes:
        """Returns the image at the row's `number` in its `source`, the split, 'train' if not said.

        Raises:
          InputError: the data set cannot be read.
        """
        records = _open_split(self.folder, row.get("source", "train"), self.feature)
        return records[row["number"]][self.feature]


@functools.lru_cache(maxsize=16)  # opened once in each process
def _open_split(folder: str, split: str, feature: str) -> Sequence[Record]:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder).as_data_source(
            split=split, decoders={feature: tfds.decode.SkipDecoding()}
        )
    except Exception as error:  # TFDS documents no exceptions
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: cannot be read ({reason}); prepare it again") from error
