"""A folder of tiles: folders that are classes, or a table that says what each file is."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.names import SlideName, find_slide, patient_groups
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.dataset import Provenance
from densenet_flax.data.images.array_cache import ImageOptions
from densenet_flax.data.images.formats import read_image_file
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.images.stream import Row
from densenet_flax.data.sources import earlier_rules, patients
from densenet_flax.data.sources.class_order import order_classes
from densenet_flax.data.sources.files import FileListing, list_files, listing_digest
from densenet_flax.data.sources.similar_names import name_key, unify_names
from densenet_flax.data.sources.source import Annotations, FileSource
from densenet_flax.data.sources.tile_table import Tile, read_tile_tables
from densenet_flax.data.sources.tree_layout import read_layout, read_subsets

# In front of the names of images of `data.test_path`.
_IN_TEST_TREE = "test/"


class FolderSource(FileSource):
    """The tiles of a folder."""

    def __init__(self, config: DataConfig, cache: Path, options: ImageOptions):
        """Lists the folder; raises an `InputError` as `list_tiles` does."""
        if not config.path:
            raise InputError("data.path is empty: give the folder of the images")
        root = Path(config.path).expanduser()
        find_tiles = earlier_rules.list_tiles if config.earlier_rules else list_tiles
        tiles, self._provenance = find_tiles(root, config)
        self._tiles = tiles
        self.class_names = config.class_names or order_classes(
            {tile.label for tile in tiles}, as_before=config.earlier_rules
        )
        for tile in tiles:
            if tile.label not in self.class_names:
                raise InputError(
                    f"{tile.file}: its class {tile.label!r} is not one of "
                    f"data.class_names={self.class_names}"
                )
        self.read = functools.partial(_read_tile, root, _test_root(config))
        paths = {tile.file: tile.path for tile in tiles}
        key = listing_digest(root, paths)[:20]
        # Of a TIFF with its colors in several pages, earlier versions kept the first page alone.
        if not config.earlier_rules and any(_is_tiff(file) for file in paths):
            key += "-planes"
        folder = options.cache_folder(cache / "folder" / key)
        self.array_folder = options.array_folder(folder)

    def rows(self) -> list[Row]:
        """Lists the files by name."""
        return [{"file": tile.file} for tile in self._tiles]

    def annotate(self, table: ImageTable) -> Annotations:
        """Takes labels and patients from the listing, which may change without the images."""
        tile_of_file = {tile.file: tile for tile in self._tiles}
        tiles = [tile_of_file[file] for file in table["file"]]  # some files may have been skipped
        columns = {name: [tile.known[name] for tile in tiles] for name in tiles[0].known}
        labels = [self.class_names.index(tile.label) for tile in tiles]
        annotations = Annotations.from_columns(labels, table["file"], columns)
        provenance = self._provenance
        if provenance.patient_source == patients.BREAKHIS:
            slides = [slide for tile in tiles if (slide := find_slide(tile.file))]
            annotations = _with_breakhis_groups(annotations, slides)
        return dataclasses.replace(annotations, provenance=provenance)


def list_tiles(root: Path, config: DataConfig) -> tuple[list[Tile], Provenance]:
    """Finds the tiles of a folder, sorted by name, and what is known about each and from where.

    Raises:
      InputError: a file, a row or a setting is wrong, or the folders can be read in more than one
        way; the message names it.
    """
    listing = _list_images(root, "data.path")
    if config.csv:
        if config.test_path:
            raise InputError(
                "data.test_path: is for trees without a table; name the test images in data.csv"
            )
        tiles, provenance = _tiles_of_table(root, config, listing)
    else:
        tiles, provenance = _tiles_of_tree(root, config, listing)
    # Names from paths and tables alike: what differs only in spelling is a mistake in either.
    labels: Sequence[str] = [tile.label for tile in tiles]
    if config.class_names and config.similar_names == "merge":
        # The names that were stated are the spelling that all others become.
        stated = {name_key(name): name for name in config.class_names}
        labels = [stated.get(name_key(label), label) for label in labels]
    labels = unify_names(labels, config.similar_names, "classes")
    tiles = [tile._replace(label=label) for tile, label in zip(tiles, labels, strict=True)]
    tiles, provenance = _with_patients(tiles, config, provenance)
    for name in ("patient", "site"):
        if name in tiles[0].known:
            names = unify_names([t.known[name] for t in tiles], config.similar_names, f"{name}s")
            tiles = [_knowing(tile, name, n) for tile, n in zip(tiles, names, strict=True)]
    return sorted(tiles, key=lambda tile: tile.file), provenance


def _list_images(root: Path, key: str) -> FileListing:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of the images as {key}")
    listing = list_files(root)
    listing.check_readable()
    if not listing.images:
        raise InputError(f"{root}: no images in it ({listing.describe()})")
    return listing


def _tiles_of_tree(
    root: Path, config: DataConfig, listing: FileListing
) -> tuple[list[Tile], Provenance]:
    tiles, subsets_from, labels_from = _read_tree(root, config, listing)
    left_out = dict(listing.left_out)
    if config.test_path:
        if any(tile.known.get("split") == "test" for tile in tiles):
            raise InputError(
                f"data.test_path={config.test_path}: {root} has test images of its own; give the "
                "folder of its training images as data.path"
            )
        test_root = _test_root(config)
        assert test_root is not None
        test_listing = _list_images(test_root, "data.test_path")
        test_tiles, _, _ = _read_tree(test_root, config, test_listing)
        tiles = [_knowing(tile, "split", tile.known.get("split", "train")) for tile in tiles]
        tiles += [
            Tile(_IN_TEST_TREE + tile.file, tile.path, tile.label, {"split": "test"}, tile.file)
            for tile in test_tiles
        ]
        left_out |= {_IN_TEST_TREE + name: why for name, why in test_listing.left_out.items()}
        subsets_from = f"data.test_path={config.test_path}"
        if len({tile.file for tile in tiles}) < len(tiles):
            raise InputError(
                f"{root}: has a folder {_IN_TEST_TREE} beside data.test_path; give the folder of "
                "the training images as data.path"
            )
    return tiles, Provenance(labels_from, subsets_from=subsets_from, left_out=left_out)


def _read_tree(root: Path, config: DataConfig, listing: FileListing) -> tuple[list[Tile], str, str]:
    files = list(listing.images)
    try:
        layout = read_layout(files, config.label_level, config.label_pattern)
    except InputError as error:
        raise InputError(f"{root}: {error}") from error
    tiles = [
        Tile(file, path, label, {})
        for (file, path), label in zip(listing.images.items(), layout.labels, strict=True)
    ]
    if layout.subsets:
        tiles = [_knowing(t, "split", s) for t, s in zip(tiles, layout.subsets, strict=True)]
    return tiles, layout.subsets_from, layout.labels_from


def _tiles_of_table(
    root: Path, config: DataConfig, listing: FileListing
) -> tuple[list[Tile], Provenance]:
    tiles, used = read_tile_tables(config.csv, root, listing.images, config.columns)
    listed = {tile.file for tile in tiles}
    left_out = dict(listing.left_out)
    left_out |= {file: "not in the table" for file in listing.images if file not in listed}
    subsets_from = f"column {used['split']!r}" if "split" in used else ""
    if not subsets_from and "split" in tiles[0].known:
        subsets_from = "the names of the tables"
    if not subsets_from and config.columns.split != "none":
        # A table may leave to the folders what is tested.
        subsets, level = read_subsets([tile.file for tile in tiles])
        if subsets:
            tiles = [_knowing(t, "split", s) for t, s in zip(tiles, subsets, strict=True)]
            subsets_from = f"folders at level {level}"
    return tiles, Provenance(
        labels_from=f"column {used['label']!r}",
        patients_from=f"column {used['patient']!r}" if "patient" in used else "",
        subsets_from=subsets_from,
        left_out=left_out,
    )


def _with_patients(
    tiles: Sequence[Tile], config: DataConfig, provenance: Provenance
) -> tuple[list[Tile], Provenance]:
    """Finds whose the tiles are: by a table, by `data.patient_pattern`, or by BreakHis's names."""
    tiles, pattern = list(tiles), config.patient_pattern
    if "patient" in tiles[0].known:
        if pattern:
            raise InputError(
                "data.patient_pattern: the table has a column of patients already "
                f"({provenance.patients_from}); use one of the two, or set "
                "data.columns.patient='none'"
            )
        return tiles, dataclasses.replace(provenance, patient_source=patients.TABLE)
    if pattern:
        files = [tile.in_tree or tile.file for tile in tiles]
        found = patients.find_patients(files, pattern=pattern)
        for tile, patient in zip(tiles, found, strict=True):
            if not patient:
                raise InputError(
                    f"{tile.file}: data.patient_pattern={pattern!r} finds no patient in this name; "
                    "correct the pattern or rename the file"
                )
        if len(set(found)) == 1 < len(found):
            raise InputError(
                f"data.patient_pattern={pattern!r}: finds the same patient {found[0]!r} in all "
                f"{len(found)} paths, such as {tiles[0].file}; correct the pattern"
            )
        tiles = [_knowing(t, "patient", p) for t, p in zip(tiles, found, strict=True)]
        return tiles, dataclasses.replace(
            provenance,
            patients_from=f"data.patient_pattern={pattern!r}",
            patient_source=patients.PATTERN,
        )
    slides = [find_slide(tile.file) for tile in tiles]
    if not any(slides):
        return tiles, provenance
    _check_slides(tiles, slides)
    return tiles, dataclasses.replace(
        provenance, patients_from="BreakHis's file names", patient_source=patients.BREAKHIS
    )


def _check_slides(tiles: Sequence[Tile], slides: Sequence[SlideName | None]) -> None:
    """Raises an `InputError` if a file has no BreakHis name, or one that contradicts its class."""
    classes = {tile.label.casefold() for tile in tiles}
    for tile, slide in zip(tiles, slides, strict=True):
        if slide is None:
            example = next(t.file for t, s in zip(tiles, slides, strict=True) if s)
            raise InputError(
                f"{tile.file}: nothing says whose it is, while {example} has a BreakHis name; set "
                "data.patient_pattern to find the patient in both, or give a table with a column "
                "patient"
            )
        if classes == {"benign", "malignant"} and tile.label.casefold() != slide.label:
            raise InputError(
                f"{tile.file}: its class is {tile.label}, but its BreakHis name says "
                f"{slide.label}; correct one of them"
            )


def _with_breakhis_groups(annotations: Annotations, slides: Sequence[SlideName]) -> Annotations:
    subtypes, ids, cases = zip(*((s.subtype, s.slide_id, s.case) for s in slides), strict=True)
    groups = patient_groups(subtypes, ids, cases)
    # Called as in other data that is not opened as BreakHis, from coarse to fine.
    groups = {"patient": groups.pop("case70"), **groups}
    sites = {name: g for name, g in annotations.groups.items() if name == "site"}
    return dataclasses.replace(annotations, groups=sites | groups, patients_known=True, notes=())


def _knowing(tile: Tile, name: str, value: str) -> Tile:
    return tile._replace(known={**tile.known, name: value})


def _is_tiff(file: str) -> bool:
    return file.lower().endswith((".tif", ".tiff"))


def _test_root(config: DataConfig) -> Path | None:
    if not config.test_path:
        return None
    root, test = (Path(path).expanduser().resolve() for path in (config.path, config.test_path))
    if root == test or root in test.parents or test in root.parents:
        raise InputError(
            f"data.test_path={config.test_path}: is in data.path or the other way round, so that "
            "images would both train and test; give two separate folders"
        )
    return Path(config.test_path).expanduser()


def _read_tile(root: Path, test_root: Path | None, row: Row) -> bytes:
    file: str = row["file"]
    if test_root is not None and file.startswith(_IN_TEST_TREE):
        return read_image_file(test_root / file.removeprefix(_IN_TEST_TREE))
    return read_image_file(root / file)
