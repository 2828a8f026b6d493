"""Images with what is known about them, whatever they came from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.data.images.stream import Images

# Who is one patient of BreakHis, from coarse to fine.
GROUPS = ("case70", "slide81", "id82")


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one size with what is known about them; row numbers are ids.

    Attributes:
      images: uint8 [N, H, W, 3]: an array, read-only and memory-mapped, or what looks like one and
        decodes on demand.
      labels: int32 [N].
      class_names: the name of each label.
      files: file names, sorted.
      metadata: per row. Always: subtype, magnification, slide_id, case, sequence; data that is
        not BreakHis also has patient and may have site and split, and there subtype is the class,
        magnification 0, and slide_id and case are the patient.
      name: what messages call it.
      fingerprint: SHA-256 of names, image bytes and the size they were brought to; the same
        images give the same one, wherever they lie.
      patients_known: False if nothing says whose the images are and each counts as a patient.
      stain: the normalisation that the images went through, as `stain.resolve` returns it; a new
        image has to go through the same. {} for none.
      notes: what a reader of results should know, such as images that were left out.
    """

    images: Images = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    files: np.ndarray = dataclasses.field(repr=False)
    metadata: dict[str, np.ndarray] = dataclasses.field(repr=False)
    name: str
    fingerprint: str
    patients_known: bool = True
    stain: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def groups(self) -> tuple[str, ...]:
        """The keys that `patients` takes; the first is the one that keeps the most together."""
        if "patient" in self.metadata:
            return ("site", "patient") if "site" in self.metadata else ("patient",)
        return GROUPS

    def patients(self, group: str) -> np.ndarray:
        """The patient of each row.

        Args:
          group: of BreakHis 'id82' (subtype and slide, what the literature counts), 'slide81'
            (slide alone: one appears under two subtypes) or 'case70' (the number on the slide:
            several slides are blocks of one case); of other data 'patient', or 'site' to keep
            whole sites together.
        """
        if group not in self.groups:
            raise InputError(
                f"split.group={group!r}: {self.name} has {', '.join(self.groups)}; choose one of "
                "these"
            )
        if group == "case70":
            return self.metadata["case"]
        if group == "slide81":
            return self.metadata["slide_id"]
        if group == "id82":
            pairs = zip(self.metadata["subtype"], self.metadata["slide_id"], strict=True)
            return np.array([f"{subtype}/{slide}" for subtype, slide in pairs], dtype=str)
        return self.metadata[group]
