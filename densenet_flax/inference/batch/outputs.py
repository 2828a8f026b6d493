"""The outputs of a prediction job: which are asked for, and whether they can be written."""

import dataclasses
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.data.sources.files import OUTPUT_MARK
from densenet_flax.inference.batch.table_writer import check_format


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """The outputs of a prediction job.

    Attributes:
      output: the table, `.csv` or `.parquet`.
      overlays: folder for a picture of each image with its saliency map; None for none.
      embeddings: file for the pooled features of each row, `.npy` or `.parquet`; None for none.
      unit: the unit of the saliency maps and of the features.
      maps: how the saliency maps are made, one of `classifier.MAP_METHODS`.
      overwrite: whether outputs that exist are replaced.
    """

    output: Path
    overlays: Path | None = None
    embeddings: Path | None = None
    unit: str = "norm"
    maps: str = "cam"
    overwrite: bool = False

    def check(self) -> None:
        """Raises InputError for an unknown format or an existing table, before anything else."""
        check_format("--output", self.output, (".csv", ".parquet"))
        if self.embeddings:
            check_format("--embeddings", self.embeddings, (".npy", ".parquet"))
            if self.embeddings.resolve() == self.output.resolve():
                raise InputError(
                    f"--embeddings={self.embeddings}: is --output, too; choose another"
                )
        self._check_free("--output", self.output)

    def check_other_outputs(self) -> None:
        """Raises InputError if embeddings or overlays exist."""
        # Not a part of `check`: a job that resumes has written its own.
        self._check_free("--embeddings", self.embeddings)
        folder = self.overlays
        # An empty one is free; one with a mark alone is that of a job that had only begun.
        if folder and not (
            folder.is_dir() and all(p.name == OUTPUT_MARK for p in folder.iterdir())
        ):
            self._check_free("--overlays", folder)

    def _check_free(self, flag: str, path: Path | None) -> None:
        if path and path.exists() and not self.overwrite:
            expected = "choose another name, or replace it with --overwrite"
            raise InputError(f"{flag}={path}: already exists; {expected}")


def partial_path(path: Path) -> Path:
    """Where the content of an output is kept until it is complete."""
    return path.with_name(f"{path.name}.partial")
