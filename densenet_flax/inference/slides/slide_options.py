"""What is asked of a job of slides: where they are read, what decides them, and the output."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.inference.batch.table_writer import check_format
from densenet_flax.inference.slides.verdict import MEAN, check_rule

# Below, a slide would have hundreds of times as many tiles as it has fields.
_MIN_STRIDE = 0.05


@dataclasses.dataclass(frozen=True)
class SlideOptions:
    """The options of a job.

    Attributes:
      output: folder for the results.
      mpp: micrometers per pixel (y, x) of the slides, instead of what their files state.
      field: (height, width) in micrometers of what the network sees at a time, instead of what it
        says itself.
      stride: from one tile to the next, as a share of the field.
      tissue: a mask or a GeoJSON of regions; or a folder with one for each slide, of its name.
      min_tissue: share of a tile that has to be tissue.
      verdict: 'mean' or 'top-10', with any number.
      overwrite: whether results of another job are replaced.
    """

    output: Path
    mpp: tuple[float, float] | None = None
    field: tuple[float, float] | None = None
    stride: float = 1.0
    tissue: Path | None = None
    min_tissue: float = 0.5
    verdict: str = MEAN
    overwrite: bool = False

    def check(self) -> None:
        """Raises InputError for a value that cannot be used."""
        check_rule(self.verdict)
        check_format("--output", Path("tiles.parquet"), (".parquet",))
        if not _MIN_STRIDE <= self.stride <= 1:
            raise InputError(
                f"--stride={self.stride:g}: expected a share of the field from {_MIN_STRIDE:g} to "
                "1; 1 for tiles side by side, less for tiles that overlap"
            )
        if not 0 <= self.min_tissue <= 1:
            raise InputError(
                f"--min_tissue={self.min_tissue:g}: expected a share of a tile from 0 to 1"
            )
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"--output={self.output}: is not a folder; choose another name")
        if self.tissue and not self.tissue.exists():
            raise InputError(f"--tissue={self.tissue}: no such file or folder")

    def tissue_of(self, name: str) -> Path | None:
        """The file that says where the tissue of a slide is; None if it is to be found."""
        if self.tissue is None or self.tissue.is_file():
            return self.tissue
        stem = Path(name).name
        files = [path for path in sorted(self.tissue.iterdir()) if path.stem == stem]
        if len(files) != 1:
            listed = " and ".join(path.name for path in files) or "none"
            raise InputError(
                f"--tissue={self.tissue}: expected one file named {stem}.geojson or {stem}.png in "
                f"it, a mask of the slide; there is {listed}"
            )
        return files[0]

    def describe(self, name: str) -> JsonDict:
        """What decides the tiles of a slide, as JSON values."""
        tissue = self.tissue_of(name)
        return {
            "mpp": self.mpp,
            "field": self.field,
            "stride": self.stride,
            "min_tissue": self.min_tissue,
            "tissue": hashlib.sha256(tissue.read_bytes()).hexdigest() if tissue else None,
        }


def parse_lengths(flag: str, texts: Sequence[str] | None) -> tuple[float, float] | None:
    """Height and width of a flag such as --mpp=0.25 or --field=230,350."""
    if not texts:
        return None
    try:
        height, width = map(float, [*texts] * 2 if len(texts) == 1 else texts)
        if not (0 < height < float("inf") and 0 < width < float("inf")):
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"{flag}={','.join(texts)}: expected a number above 0 of micrometers, or two, height "
            "(down) and width (across)"
        ) from error
    return height, width
