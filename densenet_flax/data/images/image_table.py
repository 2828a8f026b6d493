"""What preparation finds out about each image, as the file `rows.json` beside the pixels."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError

_FILE = "rows.json"


@dataclasses.dataclass(frozen=True)
class ImageTable:
    """A row for each image, in the order of the images.

    Attributes:
      columns: lists of equal length, of values that JSON has: `file`, `content` (SHA-256 of the
        decoded pixels) and what the source of the images states.
      fingerprint: SHA-256 of the names, the encoded images, their size and stain normalization.
      skipped: a line for each image that was left out, which says why.
    """

    columns: Mapping[str, Sequence[Any]]
    fingerprint: str
    skipped: Sequence[str] = ()

    def __getitem__(self, column: str) -> Sequence[Any]:
        return self.columns[column]

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
        try:
            content = json.loads((folder / _FILE).read_text())
            fingerprint, skipped = content.pop("fingerprint"), content.pop("skipped")
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: cannot be read ({error}); remove this folder") from error
        return cls(content, fingerprint, skipped)
