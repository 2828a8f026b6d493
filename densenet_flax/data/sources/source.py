"""What a source of images provides, whatever the images are stored in."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from densenet_flax.data.dataset import Provenance
from densenet_flax.data.images.array_cache import ImageOptions, PreparedImages, prepare_images
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.images.stream import Reader, Row


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What a source states about images, in their order; the attributes are those of `Dataset`."""

    labels: Sequence[int]
    groups: Mapping[str, Shaped[np.ndarray, "N"]]
    columns: Mapping[str, Shaped[np.ndarray, "N"]] = dataclasses.field(default_factory=dict)
    patients_known: bool = True
    notes: Sequence[str] = ()
    provenance: Provenance = dataclasses.field(default_factory=Provenance)

    @classmethod
    def from_columns(
        cls, labels: Sequence[int], files: Sequence[str], columns: Mapping[str, Sequence[str]]
    ) -> "Annotations":
        """Makes annotations from what is known: `columns` may have 'patient', 'site' and 'split'.

        Without patients each of `files` counts as a patient of its own.
        """
        arrays = {name: np.array(column, str) for name, column in columns.items()}
        # A patient has one site, so sites are the coarser groups.
        groups: dict[str, np.ndarray] = {
            name: arrays.pop(name) for name in ("site", "patient") if name in arrays
        }
        if "patient" in groups:
            return cls(labels, groups, arrays)
        groups["patient"] = np.array(files, str)
        note = "nothing says whose the images are: each counts as a patient of its own"
        return cls(labels, groups, arrays, patients_known=False, notes=(note,))


class Source(abc.ABC):
    """Where images come from. A subclass is made from `config.data`, the cache and the options.

    Attributes:
      class_names: the name of each label.
    """

    class_names: tuple[str, ...]

    @abc.abstractmethod
    def prepare(self, options: ImageOptions) -> PreparedImages:
        """Opens the images, and prepares them first if that was not done before."""

    @abc.abstractmethod
    def annotate(self, table: ImageTable) -> Annotations:
        """Returns labels, groups and columns of prepared images."""


class FileSource(Source):
    """Images in files, prepared in one folder of the cache.

    What preparation needs of each image is a `Row`, which is kept in the table of the prepared
    images, so that a later run does not list them again.

    Attributes:
      array_folder: where prepared images are kept.
      read: returns the encoded image of a row.
    """

    array_folder: Path
    read: Reader

    @abc.abstractmethod
    def rows(self) -> list[Row]:
        """Lists the images in the order that the data set will have; may take minutes."""

    def skipped(self) -> Sequence[str]:
        """Returns a line for each image that `rows` had to leave out."""
        return ()

    def prepare(self, options: ImageOptions) -> PreparedImages:
        """As `Source.prepare`; `options` are those that the source was made with."""
        return prepare_images(self.array_folder, options, self.rows, self.read, self.skipped)
