"""The keys of `config.data`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.common.micrometers import MPP_RANGE, are_within
from densenet_flax.common.patterns import pattern_fault
from densenet_flax.common.settings import Settings, at_least, choice, setting
from densenet_flax.data.breakhis.names import LABELS, MAGNIFICATIONS
from densenet_flax.data.sources.similar_names import POLICIES
from densenet_flax.data.sources.tile_table import ColumnSettings
from densenet_flax.data.synthetic.breakhis_tree import DrawnConfig

_BREAKHIS_NAMES = ("breakhis", "drawn")
DATA_NAMES = (*_BREAKHIS_NAMES, "folder", "arrays")  # and 'tfds:<name>'


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """Which images to use, and how to prepare them.

    Attributes:
      name: 'breakhis'; 'drawn' for synthetic tiles under BreakHis's names; 'folder' for a folder
        per class or a CSV; 'tfds:NAME' for a data set of TFDS; 'arrays' for images that
        `densenet_flax.fine_tune` was given.
      path: of 'breakhis' the archive, or any folder above the images; of 'folder' the folder of the
        images; of TFDS the folder that it keeps its data in, '' for its default; of 'arrays' the
        folder `data` of the work directory.
      image_size: (height, width) that images are resized to.
      labels: of BreakHis, 'binary' or 'subtype' (eight classes).
      magnification: of BreakHis, 40, 100, 200, 400, or 0 for all.
      require_complete: of BreakHis, whether a missing image is an error.
      duplicates: what to do with images that appear more than once: see `drop_duplicates`.
      on_bad_image: 'error', or 'skip' to leave out what is not a whole image.
      storage: 'array' (resized once and mapped) or 'stream' (decoded whenever it is used).
      workers: processes that decode streamed images; 0 for threads.
      csv: of 'folder', a table (CSV, or a JSON list) with the columns file and label, and perhaps
        patient, site, split; or several with commas between, such as 'train.json,test.json'.
      columns: of 'folder' with a table, what its columns are called.
      test_path: of 'folder' without a table, a second folder with the images to test on.
      label_level: of 'folder' without a table, which folder of a path is the class: 0 for the top
        one, -1 for the innermost; None to recognize it.
      label_pattern: instead of a level, a regular expression that finds the class in a path.
      patient_pattern: of 'folder' without a column patient, a regular expression that finds the
        patient in a file's path relative to `path`: its first group, or the whole match.
      similar_names: of 'folder', what to do with classes or patients whose names differ only in
        spelling: 'error', 'merge' or 'keep'.
      class_names: of 'folder' and 'arrays', the classes in the order of their labels; () for
        `order_classes`.
      patient_key: of TFDS, the feature that says whose an image is; '' if there is none.
      bits: how many bits the values of images with more than 8 use, 8 to 16; 0 if unknown, which is
        16 where an image has values that need them, and an error where not.
      mpp: micrometers per pixel of the tiles as they are on disk, one number or (down, across);
        None if unknown, or for what is known of BreakHis and drawn tiles.
      stain: stain normalization; see `stain_normalization.resolve_settings`.
      drawn: of 'drawn', which tiles to draw.
      earlier_rules: of 'folder', whether each top folder is a class and all that follows from
        names is off, as when a run was begun by an earlier version. Set for such runs.
    """

    name: str = setting(
        "breakhis",
        "'breakhis', 'drawn', 'folder', 'arrays' or 'tfds:<name>'",
        lambda name: name in DATA_NAMES or name.startswith("tfds:"),
    )
    path: str = ""
    image_size: tuple[int, int] = setting(
        (224, 224),
        "(height, width) in pixels, at most 4096",
        lambda size: all(0 < length <= 4096 for length in size),
    )
    labels: str = choice("binary", LABELS)
    magnification: int = 0
    require_complete: bool = False
    duplicates: str = choice("keep", ("keep", "drop", "error"))
    on_bad_image: str = choice("error", ("error", "skip"))
    storage: str = choice("array", ("array", "stream"))
    workers: int = at_least(0, default=0, expected="the number of processes, or 0 for threads")
    csv: str = ""
    columns: ColumnSettings = dataclasses.field(default_factory=ColumnSettings)
    test_path: str = ""
    label_level: int | None = None
    label_pattern: str = ""
    patient_pattern: str = ""
    similar_names: str = choice("error", POLICIES)
    class_names: tuple[str, ...] = setting(
        (), "each name once", lambda names: len(set(names)) == len(names)
    )
    patient_key: str = ""
    bits: int = setting(0, "8 to 16, or 0 if unknown", lambda bits: bits in (0, *range(8, 17)))
    mpp: float | tuple[float, float] | None = setting(
        None,
        f"micrometers per pixel from {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}, one number or two",
        lambda mpp: (
            mpp is None or are_within(MPP_RANGE, *(mpp if isinstance(mpp, tuple) else (mpp,)))
        ),
    )
    stain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    drawn: DrawnConfig = dataclasses.field(default_factory=DrawnConfig)
    earlier_rules: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # A key that is not of this kind of data may have any value.
        if self.name in _BREAKHIS_NAMES and self.magnification not in (0, *MAGNIFICATIONS):
            raise InputError(
                f"magnification={self.magnification}: expected 0 (all) or one of "
                f"{', '.join(map(str, MAGNIFICATIONS))}"
            )
        for key in ("patient_pattern", "label_pattern"):
            pattern = getattr(self, key)
            if fault := pattern_fault(pattern):
                raise InputError(f"{key}={pattern!r}: not a regular expression ({fault})")
        if self.label_pattern and self.label_level is not None:
            raise InputError(
                f"label_level={self.label_level}: label_pattern states the class already; use one "
                "of the two"
            )
