"""What a prediction leaves behind, and whether it may."""

import dataclasses
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.inference.batch import table_writer as tables
from densenet_flax.inference.batch.image_files import ImageFile


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """What a prediction leaves behind.

    Attributes:
      output: the table, `.csv` or `.parquet`.
      overlays: folder for a picture of each image with its map; None for none.
      embeddings: file for the features of each row, `.npy` or `.parquet`; None for none.
      unit: of the maps.
      overwrite: whether what is there already may be replaced.
    """

    output: Path
    overlays: Path | None = None
    embeddings: Path | None = None
    unit: str = "norm"
    overwrite: bool = False

    def check(self) -> None:
        """Refuses outputs that cannot be, before anything takes time.

        Raises:
          InputError: a name of no known format, or the table is there already.
        """
        tables.check_suffix("--output", self.output, (".csv", ".parquet"))
        if self.embeddings:
            tables.check_suffix("--embeddings", self.embeddings, (".npy", ".parquet"))
        self._check_free("--output", self.output)

    def check_rest(self) -> None:
        """Refuses to begin where other outputs are there already.

        Raises:
          InputError: the message names which.
        """
        self._check_free("--embeddings", self.embeddings)
        self._check_free("--overlays", self.overlays)

    def overlay_of(self, found: ImageFile) -> Path:
        """Where the picture of an image goes: its own name in the folder, as a PNG."""
        path = (self.overlays or Path()) / found.name
        return path if path.suffix == ".png" else path.with_name(f"{path.name}.png")

    def _check_free(self, flag: str, path: Path | None) -> None:
        if path is None or self.overwrite or not path.exists():
            return
        if path.is_dir() and flag == "--overlays" and not any(path.iterdir()):
            return
        raise InputError(
            f"{flag}={path}: there already; choose another name, or add --overwrite to replace it"
        )


def partial(path: Path) -> Path:
    """Where an output is kept until it is whole."""
    return path.with_name(f"{path.name}.partial")
