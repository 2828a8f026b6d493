"""Images with what is known about them, whatever they came from."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Shaped

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.images.stream import Images


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where what is known about the images of a data set was found, in words.

    Attributes:
      labels_from: such as 'the top folder' or 'column class'.
      patients_from: such as 'data.patient_pattern=…'; '' if nothing says whose the images are.
      patient_source: one of the constants of `data.sources.patients`.
      subsets_from: such as 'folders at level 0'; '' if the data states no subsets.
      left_out: why each file beside the images was left out, by its name.
      incomplete: which images a data set of known size lacks or has beyond it; '' for others.
    """

    labels_from: str = ""
    patients_from: str = ""
    patient_source: str = "unknown"
    subsets_from: str = ""
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    incomplete: str = ""


@dataclasses.dataclass(frozen=True)
class TileField:
    """How much tissue one tile of a data set shows.

    Attributes:
      mpp: micrometers per pixel of the tiles as they are on disk, (y, x).
      size_um: (height, width) of a tile in micrometers.
    """

    mpp: tuple[float, float]
    size_um: tuple[float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one size with what is known about them; row numbers are ids.

    Attributes:
      images: uint8 [N, H, W, 3]: an array, read-only and memory-mapped, or an object that indexes
        like one and decodes on demand.
      labels: the class of each image, an index into `class_names`.
      class_names: the name of each label.
      files: the name of each image's file, each once.
      groups: the ways to tell patients apart, from coarse to fine: the key that `split.group`
        names, and for each image the name of its group. BreakHis has 'case70', 'slide81' and
        'id82'; other data has 'patient', and 'site' before it if sites are known.
      name: the data set's name in messages.
      fingerprint: SHA-256 of names, image bytes and the size they were resized to; the same
        images have the same fingerprint wherever they are stored.
      columns: other facts about each image, where the source states them: 'subtype',
        'magnification', 'slide_id', 'case', 'sequence' of BreakHis, 'split' of other data.
      patients_known: False if nothing says whose the images are and each counts as a patient.
      stain: the normalization that the images went through, as `resolve_settings` of
        `stain_normalization` returns it; a new image has to go through the same. {} for none.
      field: how much tissue a tile shows; None if that is not known.
      notes: what a reader of results should know, such as images that were left out.
      contents: a digest of the pixels of each image, equal for exact copies; None if not known.
      provenance: where labels, patients and subsets were found.
      awaits_test: whether test images are given after training, so that a split may have none.
    """

    images: Images = dataclasses.field(repr=False)
    labels: Int32[np.ndarray, "N"] = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    files: Shaped[np.ndarray, "N"] = dataclasses.field(repr=False)
    groups: Mapping[str, Shaped[np.ndarray, "N"]] = dataclasses.field(repr=False)
    name: str
    fingerprint: str
    columns: Mapping[str, Shaped[np.ndarray, "N"]] = dataclasses.field(
        default_factory=dict, repr=False
    )
    patients_known: bool = True
    stain: JsonDict = dataclasses.field(default_factory=dict, repr=False)
    field: TileField | None = None
    notes: tuple[str, ...] = ()
    contents: Shaped[np.ndarray, "N"] | None = dataclasses.field(default=None, repr=False)
    provenance: Provenance = dataclasses.field(default_factory=Provenance)
    awaits_test: bool = False

    @property
    def positive_class(self) -> str:
        """The class that is looked for; '' with more than two."""
        return self.class_names[1] if len(self.class_names) == 2 else ""

    def __len__(self) -> int:
        return len(self.files)

    def patients(self, group: str) -> Shaped[np.ndarray, "N"]:
        """Returns the patient of each image by one of `groups`, or raises an `InputError`."""
        if group not in self.groups:
            known = ", ".join(self.groups)
            raise InputError(
                f"config.split.group={group!r}: {self.name} has {known}; choose one of these"
            )
        return self.groups[group]
