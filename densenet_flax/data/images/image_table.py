"""What preparation finds out about each image, as the file `rows.json` beside the pixels."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.storage.json_files import read_json_object

_FILE = "rows.json"


@dataclasses.dataclass(frozen=True)
class ImageTable:
    """A row for each image, in the order of the images.

    Attributes:
      columns: lists of equal length, of values that JSON has: `file`, `content` (SHA-256 of the
        decoded pixels), `tile_height` and `tile_width` (which earlier versions did not write) and
        what the source of the images states.
      fingerprint: SHA-256 of the names, the encoded images, their size and stain normalization.
      skipped: a line for each image that was left out, which says why.
    """

    columns: Mapping[str, Sequence[Any]]
    fingerprint: str
    skipped: Sequence[str] = ()

    def __getitem__(self, column: str) -> Sequence[Any]:
        return self.columns[column]

    def __len__(self) -> int:
        return len(self.columns["file"])

    def take(self, rows: Sequence[int], key: str) -> "ImageTable":
        """Returns a subset of the rows; `key` tells its fingerprint from those of others."""
        return ImageTable(
            {name: [column[row] for row in rows] for name, column in self.columns.items()},
            hashlib.sha256(f"{self.fingerprint} without {key}".encode()).hexdigest(),
            self.skipped,
        )

    def save(self, folder: Path) -> None:
        """Writes the table into a folder."""
        content = {**self.columns, "fingerprint": self.fingerprint, "skipped": list(self.skipped)}
        (folder / _FILE).write_text(json.dumps(content))

    @classmethod
    def load(cls, folder: Path) -> "ImageTable":
        """Reads the table of a folder; raises an `InputError` if it is not there or damaged."""
        content = read_json_object(folder / _FILE, f"remove {folder}, to prepare the images again")
        fingerprint, skipped = content.pop("fingerprint", None), content.pop("skipped", None)
        columns = [*content.values(), skipped]
        is_table = isinstance(fingerprint, str) and all(isinstance(c, list) for c in columns)
        if not is_table or len({len(column) for column in content.values()}) != 1:
            raise InputError(
                f"{folder / _FILE}: not a table of images; remove {folder}, to prepare them again"
            )
        return cls(content, fingerprint, skipped)
