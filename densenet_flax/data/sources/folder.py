"""A folder of tiles: a folder per class, or a CSV that says what each file is."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.images.array_cache import ImageOptions
from densenet_flax.data.images.image_files import (
    IMAGE_SUFFIXES,
    listing_digest,
    read_file,
    walk_images,
)
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.images.stream import Row
from densenet_flax.data.sources.source import Annotations, Source
from densenet_flax.data.sources.tile_table import Tile, read_tile_table


class FolderSource(Source):
    """The tiles of a folder."""

    def __init__(self, config: DataConfig, cache: Path, options: ImageOptions):
        """Lists the folder.

        Raises:
          InputError: see `list_folder`.
        """
        if not config.path:
            raise InputError("data.path is empty: give the folder of the images")
        root = Path(config.path).expanduser()
        self._listing = list_folder(
            root,
            table=Path(config.csv).expanduser() if config.csv else None,
            patient_pattern=config.patient_pattern,
            class_names=config.class_names,
        )
        if self._listing.images_not_in_table:
            logging.info(
                "%s: %d images are not in %s", root, self._listing.images_not_in_table, config.csv
            )
        self.class_names = self._listing.class_names
        self.read = FileReader(root)
        tiles = {tile.file: tile.path for tile in self._listing.tiles}
        folder = options.cache_folder(cache / "folder" / listing_digest(root, tiles)[:20])
        self.array_folder = options.array_folder(folder)

    def rows(self) -> list[Row]:
        """Lists the files by name."""
        return [{"file": tile.file} for tile in self._listing.tiles]

    def annotate(self, table: ImageTable) -> Annotations:
        """Takes labels and patients from the listing, which may change without the images."""
        tiles = {tile.file: tile for tile in self._listing.tiles}
        prepared_tiles = [tiles[file] for file in table["file"]]
        known = prepared_tiles[0].known
        columns = {name: [tile.known[name] for tile in prepared_tiles] for name in known}
        labels = [self.class_names.index(tile.label) for tile in prepared_tiles]
        return Annotations.from_columns(labels, table["file"], columns)


@dataclasses.dataclass(frozen=True)
class FileReader:
    """Reads images of a folder, also in another process."""

    root: Path

    def __call__(self, row: Row) -> bytes:
        """Returns the content of the file that a row names."""
        return read_file(self.root / row["file"])


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
      tiles: sorted by file name.
      class_names: in the order of their labels.
      images_not_in_table: how many images of the folder the CSV does not mention.
    """

    tiles: Sequence[Tile]
    class_names: tuple[str, ...]
    images_not_in_table: int = 0


def list_folder(
    root: Path,
    *,
    table: Path | None = None,
    patient_pattern: str = "",
    class_names: Sequence[str] = (),
) -> Listing:
    """Finds the images of a folder and what is known about each.

    Args:
      root: the folder. Without `table`, each folder in it is a class.
      table: a CSV; see `read_tile_table`.
      patient_pattern: see `find_patient`. Not together with a column patient.
      class_names: the classes in the order of their labels; sorted by name if empty.

    Raises:
      InputError: a file, a row or a setting is wrong; the message names it.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of the images as data.path")
    images = walk_images(root)
    if not images:
        raise InputError(
            f"{root}: no images in it; expected files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    if table is None:
        tiles = [_in_class_folder(root, file, path) for file, path in images.items()]
    else:
        tiles = read_tile_table(table, root, images)
    if patient_pattern:
        if "patient" in tiles[0].known:
            raise InputError(
                "data.patient_pattern: the CSV has a column 'patient' already; use one of the two"
            )
        tiles = [_with_patient(tile, patient_pattern) for tile in tiles]
    class_names = tuple(class_names) or tuple(sorted({tile.label for tile in tiles}))
    for tile in tiles:
        if tile.label not in class_names:
            raise InputError(
                f"{tile.file}: its class {tile.label!r} is not one of "
                f"data.class_names={class_names}"
            )
    tiles.sort(key=lambda tile: tile.file)
    return Listing(tiles, class_names, len(images) - len(tiles))


def find_patient(pattern: str, file: str) -> str:
    """Returns the first group of the first match in a path, or the whole match; '' if none."""
    match = re.search(pattern, file)
    if not match:
        return ""
    return (match.group(1) if match.re.groups else match.group()) or ""


def _in_class_folder(root: Path, file: str, path: Path) -> Tile:
    label, slash, _ = file.partition("/")
    if not slash:
        raise InputError(
            f"{path}: is not in a class folder; expected {root}/<class>/{file}, or a CSV as "
            "data.csv"
        )
    return Tile(file, path, label, {})


def _with_patient(tile: Tile, pattern: str) -> Tile:
    patient = find_patient(pattern, tile.file)
    if not patient:
        raise InputError(
            f"{tile.file}: data.patient_pattern={pattern!r} finds no patient in this name; correct "
            "the pattern or rename the file"
        )
    return dataclasses.replace(tile, known={**tile.known, "patient": patient})
