"""Journals, and the JSON, JSONL and CSV files that the package writes or takes from users."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densenet_flax.data.breakhis.name_list import dataset_of_names, list_file_names
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.sources.tile_table import read_tile_table
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import load_split
from densenet_flax.data.splits.split_config import SplitConfig
from densenet_flax.evaluation.predictions_csv import read_csv
from densenet_flax.inference.batch.journal import Entry, Journal
from densenet_flax.storage.checksums import cached_dir, check_files
from densenet_flax.storage.trained_model import read_operating_point
from densenet_flax.storage.workdir import Workdir
from densenet_flax.weights.inference_settings import StoredOperatingPoint
from densenet_flax.weights.safe_reading import reading
from tests.fuzz.mutation import (
    Mutator,
    cut,
    damage,
    damage_json,
    damage_json_lines,
    damage_table,
    flip_bit,
)
from tests.fuzz.target import Target, difference
from tests.helpers.datasets import make_dataset

_JSON: Sequence[Mutator] = (*[damage_json] * 8, damage, flip_bit, cut)
_LINES: Sequence[Mutator] = (*[damage_json_lines] * 6, damage, flip_bit, cut)
_LINES_OF_TEXT: Sequence[Mutator] = (damage, damage, damage_table, flip_bit, cut)
_TABLE: Sequence[Mutator] = (*[damage_table] * 6, damage, flip_bit, cut)


def _sample(write: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "one").mkdir()
        write(folder / "one")

    return make


# Journals.

_NAMES = [f"a/tile-{i}\udcff.png" for i in range(12)]
_ENTRIES: list[Entry] = [
    Entry(name, f"{name}: is empty" if i == 5 else [1 / (i + 3), 1 - 1 / (i + 3)])
    for i, name in enumerate(_NAMES)
]


def _write_journal(folder: Path) -> None:
    journal = Journal(folder / "j.partial", "key", _NAMES)
    journal.append(_ENTRIES[:-2])
    journal.close()


def _read_journal(folder: Path) -> list[Entry]:
    """Resumes: all entries are there afterwards, the old ones from the journal."""
    journal = Journal(folder / "j.partial", "key", _NAMES)
    try:
        journal.append(_ENTRIES[journal.done :])
        return list(journal.entries())
    finally:
        journal.close()


# Files of a work directory.

_DATASET = make_dataset(patients=10, images=2, size=1)
_CONFIG = {
    "model": {"name": "densenet201", "hidden": [256], "weights": "imagenet"},
    "data": {"name": "folder", "path": "tiles", "image_size": [224, 224], "stain": {"method": ""}},
    "stages": {"head": {"duration": "3 epochs", "learning_rate": 1e-3}},
    "batch_size": 32,
    "ema_decay": 0.0,
}


def _write_split(folder: Path) -> None:
    make_split(_DATASET, SplitConfig(validation_fraction=0.25)).save(folder / "split.json")


def _read_split(folder: Path) -> dict[str, Any]:
    split = load_split(folder / "split.json", _DATASET)
    return {name: getattr(split, name) for name in ("train", "validation", "test")}


def _read_config(folder: Path) -> dict[str, Any]:
    workdir = Workdir(folder)
    return workdir.changes(_CONFIG, {})


def _config_is_noticed(written: Any, read: Any) -> str:
    return "" if isinstance(read, dict) else "no dictionary"


def _write_metrics(folder: Path) -> None:
    lines = [{"kind": "train", "step": 3 * i, "loss": 1 / (i + 1)} for i in range(8)]
    for name in ("metrics.jsonl", "timing.jsonl"):
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _read_metrics(folder: Path) -> dict[str, list[bytes]]:
    Workdir(folder).rewind(12)
    names = ("metrics.jsonl", "timing.jsonl")
    return {name: (folder / name).read_bytes().splitlines() for name in names}


def _is_log(written: Any, read: Any) -> str:
    for lines in read.values():
        for line in lines:
            if json.loads(line)["step"] > 12:
                return "a line of a later step stays"
    return ""


def _write_operating_point(folder: Path) -> None:
    point = StoredOperatingPoint(0.4, 1.5, "youden", "3 images", ("a note",), step=18)
    (folder / "operating_point.json").write_text(json.dumps(point.to_dict()))


def _read_point(folder: Path) -> dict[str, Any]:
    path = folder / "operating_point.json"
    with reading(path):
        return StoredOperatingPoint.from_dict(read_operating_point(path)).to_dict()


def _is_point(written: Any, read: Any) -> str:
    threshold = read["threshold"]
    is_right = threshold is None or 0 <= threshold <= 1
    return "" if is_right and read["temperature"] > 0 else f"threshold {threshold}"


# Tables.

_IMAGES = {f"{label}/{i}.png": Path(f"{label}/{i}.png") for label in ("a", "b") for i in range(6)}


def _write_tiles(folder: Path) -> None:
    rows = [f"{name},{name[0]},p{i // 2},s1,train" for i, name in enumerate(_IMAGES)]
    (folder / "tiles.csv").write_text("\n".join(["file,label,patient,site,split", *rows]) + "\n")


def _write_tiles_json(folder: Path) -> None:
    rows = [{"file": n, "label": n[0], "patient": i // 2} for i, n in enumerate(_IMAGES)]
    (folder / "tiles.json").write_text(json.dumps(rows))


def _read_tiles(folder: Path) -> Any:
    return read_tile_table(next(folder.iterdir()), folder, _IMAGES)


def _are_tiles(written: Any, read: Any) -> str:
    tiles, _ = read
    if any(tile.file not in _IMAGES or not tile.label for tile in tiles):
        return "a row without its image or a label"
    return "" if len({tile.file for tile in tiles}) == len(tiles) else "an image twice"


def _write_predictions(folder: Path) -> None:
    names = ("benign", "malignant")
    rows = [f"{i}.png,p{i // 2},100,{names[i % 2]},{(i + 1) / 14}" for i in range(12)]
    header = "file,patient,magnification,label,probability"
    (folder / "predictions.csv").write_text("\n".join([header, *rows]) + "\n")


def _read_predictions(folder: Path) -> Any:
    return read_csv(folder / "predictions.csv")


def _are_predictions(written: Any, read: Any) -> str:
    is_probability = (read.probability >= 0) & (read.probability <= 1)
    return "" if np.all(is_probability) and len(read) else "no probabilities"


def _write_names(folder: Path) -> None:
    names = [f"SOB_B_A-14-{i}AB-40-001.png|40|1|train\n" for i in range(22549, 22560)]
    (folder / "names.txt").write_text("".join(names))


def _read_names(folder: Path) -> Any:
    return dataset_of_names(list_file_names(folder / "names.txt"), name=str(folder)).files


def _write_rows(folder: Path) -> None:
    columns = {
        "file": [f"{i}.png" for i in range(9)],
        "content": [f"{i:064x}" for i in range(9)],
        "label": [i % 2 for i in range(9)],
    }
    with cached_dir(folder / "rows") as temporary:
        ImageTable(columns, "f" * 64, ["x.png: is empty"]).save(temporary)


def _read_rows(folder: Path) -> dict[str, Any]:
    check_files(folder)
    table = ImageTable.load(folder)
    return {**table.columns, "fingerprint": table.fingerprint, "skipped": table.skipped}


_ALL = (damage, flip_bit, cut, damage_json, damage_json_lines)

_TARGETS = [
    Target(
        "journals/prediction",
        _sample(_write_journal),
        _read_journal,
        _LINES,
        exact=_ALL,
        matches=functools.partial(difference, where="the journal"),
    ),
    Target("records/split.json", _sample(_write_split), _read_split, _JSON, exact=_ALL),
    Target(
        "records/config.json",
        _sample(lambda f: Workdir(f).write_config(_CONFIG)),
        _read_config,
        _JSON,
    ),
    Target(
        "records/metrics.jsonl", _sample(_write_metrics), _read_metrics, _LINES, accepts=_is_log
    ),
    Target(
        "records/operating_point.json",
        _sample(_write_operating_point),
        _read_point,
        _JSON,
        accepts=_is_point,
    ),
    Target("records/rows.json", _write_rows, _read_rows, _JSON, exact=_ALL),
    Target("records/tiles.csv", _sample(_write_tiles), _read_tiles, _TABLE, accepts=_are_tiles),
    Target(
        "records/tiles.json", _sample(_write_tiles_json), _read_tiles, _JSON, accepts=_are_tiles
    ),
    Target(
        "records/predictions.csv",
        _sample(_write_predictions),
        _read_predictions,
        _TABLE,
        accepts=_are_predictions,
    ),
    Target("records/names.txt", _sample(_write_names), _read_names, _LINES_OF_TEXT),
]

# They take half a millisecond: in the same time many more are read.
RECORD_TARGETS = [dataclasses.replace(target, weight=3.0) for target in _TARGETS]
