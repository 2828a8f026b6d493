"""The keys of `config.data`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.common.settings import Settings, at_least, choice, setting
from densenet_flax.data.breakhis.names import LABELS, MAGNIFICATIONS
from densenet_flax.data.synthetic.breakhis_tree import DrawnConfig

_BREAKHIS_NAMES = ("breakhis", "drawn")


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """Which images to use, and how to prepare them.

    Attributes:
      name: 'breakhis'; 'drawn' for synthetic tiles under BreakHis's names; 'folder' for a folder
        per class or a CSV; 'tfds:<name>' for a data set of TFDS.
      path: of 'breakhis' the archive, or any folder above the images; of 'folder' the folder of the
        images; of TFDS the folder that it keeps its data in, '' for its default.
      image_size: (height, width) that images are resized to.
      labels: of BreakHis, 'binary' or 'subtype' (eight classes).
      magnification: of BreakHis, 40, 100, 200, 400, or 0 for all.
      require_complete: of BreakHis, whether a missing image is an error.
      duplicates: what to do with images that appear more than once: see `drop_duplicates`.
      on_bad_image: 'error', or 'skip' to leave out what is not a whole image.
      storage: 'array' (resized once and mapped) or 'stream' (decoded whenever it is used).
      workers: processes that decode streamed images; 0 for threads.
      csv: of 'folder', a table with the columns file and label, and perhaps patient, site, split.
      patient_pattern: of 'folder' without a column patient, a regular expression that finds the
        patient in a file's path: its first group, or the whole match.
      class_names: of 'folder', the classes in the order of their labels; () sorts them by name.
      patient_key: of TFDS, the feature that says whose an image is; '' if there is none.
      stain: stain normalization; see `stain_normalization.resolve_settings`.
      drawn: of 'drawn', which tiles to draw.
    """

    name: str = setting(
        "breakhis",
        "'breakhis', 'drawn', 'folder' or 'tfds:<name>'",
        lambda name: name in (*_BREAKHIS_NAMES, "folder") or name.startswith("tfds:"),
    )
    path: str = ""
    image_size: tuple[int, int] = setting(
        (224, 224), "(height, width) in pixels", lambda size: min(size) > 0
    )
    labels: str = choice("binary", LABELS)
    magnification: int = 0
    require_complete: bool = False
    duplicates: str = choice("keep", ("keep", "drop", "error"))
    on_bad_image: str = choice("error", ("error", "skip"))
    storage: str = choice("array", ("array", "stream"))
    workers: int = at_least(0, default=0, expected="the number of processes, or 0 for threads")
    csv: str = ""
    patient_pattern: str = ""
    class_names: tuple[str, ...] = setting(
        (), "each name once", lambda names: len(set(names)) == len(names)
    )
    patient_key: str = ""
    stain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    drawn: DrawnConfig = dataclasses.field(default_factory=DrawnConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        # A key that is not of this kind of data may have any value.
        if self.name in _BREAKHIS_NAMES and self.magnification not in (0, *MAGNIFICATIONS):
            raise InputError(
                f"magnification={self.magnification}: expected 0 (all) or one of "
                f"{', '.join(map(str, MAGNIFICATIONS))}"
            )
        try:
            re.compile(self.patient_pattern)
        except re.error as error:
            raise InputError(
                f"patient_pattern={self.patient_pattern!r}: not a regular expression ({error})"
            ) from error
