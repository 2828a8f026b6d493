"""From a configuration to arrays: the data set in memory, and batches of it."""

import dataclasses
import hashlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from densenet_flax.data import drawn, prepare
from densenet_flax.data.breakhis import files
from densenet_flax.errors import InputError

GROUPS = ("case70", "slide81", "id82")


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one size with what is known about them; row numbers are ids.

    Attributes:
      images: uint8 [N, H, W, 3], read-only, memory-mapped.
      labels: int32 [N].
      class_names: the name of each label.
      files: file names, sorted.
      metadata: per row: subtype, magnification, slide_id, case, sequence.
      name: what messages call it.
      fingerprint: SHA-256 of names, image bytes and the size they were brought to; the same
        images give the same one, wherever they lie.
    """

    images: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    files: np.ndarray = dataclasses.field(repr=False)
    metadata: dict[str, np.ndarray] = dataclasses.field(repr=False)
    name: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.files)

    def patients(self, group: str) -> np.ndarray:
        """The patient of each row.

        Args:
          group: 'id82' (subtype and slide, what the literature counts), 'slide81' (slide alone:
            one appears under two subtypes) or 'case70' (the number on the slide: several slides
            are blocks of one case).
        """
        if group == "case70":
            return self.metadata["case"]
        if group == "slide81":
            return self.metadata["slide_id"]
        if group == "id82":
            pairs = zip(self.metadata["subtype"], self.metadata["slide_id"], strict=True)
            return np.array([f"{subtype}/{slide}" for subtype, slide in pairs], dtype=str)
        raise InputError(f"split.group={group!r}: expected one of {', '.join(GROUPS)}")


def open_dataset(data_config: Any, cache_dir: str | os.PathLike[str]) -> Dataset:
    """Opens the data set of a configuration, preparing it the first time.

    Args:
      data_config: `name` ('breakhis' or 'drawn'), `path` (BreakHis: folder or archive),
        `image_size` (height, width), `magnification` (0 for all) and `drawn` (parameters of
        `write_breakhis_tree`).
      cache_dir: where prepared data is kept for the next run.

    Raises:
      InputError: whatever is wrong with the configuration, the data or the disk.
    """
    size = _check_size(data_config.image_size)
    magnification = data_config.magnification
    if magnification not in (0, *files.MAGNIFICATIONS):
        raise InputError(
            f"data.magnification={magnification}: expected 0 (all) or one of "
            f"{', '.join(map(str, files.MAGNIFICATIONS))}"
        )
    cache = Path(cache_dir).expanduser().resolve()
    if data_config.name == "breakhis":
        if not data_config.path:
            raise InputError(
                "data.path is empty: give the folder that holds BreaKHis_v1, or the archive, with "
                "--config.data.path=..."
            )
        place = Path(data_config.path)
    elif data_config.name == "drawn":
        place = _draw(data_config.drawn, cache)
    else:
        raise InputError(f"data.name={data_config.name!r}: expected 'breakhis' or 'drawn'")

    images, rows = prepare.prepare(files.find_source(place), cache, size, magnification)
    dataset = Dataset(
        images=images,
        labels=np.array(rows["label"], np.int32),
        class_names=files.CLASS_NAMES,
        files=np.array(rows["file"], dtype=str),
        metadata={
            "subtype": np.array(rows["subtype"], dtype=str),
            "magnification": np.array(rows["magnification"], np.int32),
            "slide_id": np.array(rows["slide_id"], dtype=str),
            "case": np.array(rows["case"], dtype=str),
            "sequence": np.array(rows["sequence"], np.int32),
        },
        name=data_config.name,
        fingerprint=rows["fingerprint"],
    )
    shares = np.bincount(dataset.labels, minlength=len(dataset.class_names))
    logging.info(
        "%s: %d images of %d patients (%s) from %s",
        dataset.name,
        len(dataset),
        len(np.unique(dataset.patients("case70"))),
        ", ".join(f"{n} {name}" for n, name in zip(shares, dataset.class_names, strict=True)),
        place,
    )
    return dataset


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `n` examples in an epoch: a pure function, so resuming needs no state."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(n)


def check_batch_size(n_train: int, batch_size: int) -> None:
    """Refuses a batch size that no batch of training images could fill."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1")
    if batch_size > n_train:
        raise InputError(
            f"batch_size={batch_size} is larger than the {n_train} training images; choose at most "
            f"{n_train}"
        )


def batches(ids: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts ids into batches of one size.

    Yields:
      (ids int32 [batch_size], weights float32 [batch_size]). The last batch is filled up with its
      first id at weight 0, so that sums over weights count every example exactly once.
    """
    for start in range(0, len(ids), batch_size):
        some = np.asarray(ids[start : start + batch_size], np.int32)
        padding = batch_size - len(some)
        weight = np.concatenate([np.ones(len(some), np.float32), np.zeros(padding, np.float32)])
        yield np.concatenate([some, np.repeat(some[:1], padding)]), weight


def _check_size(size: Any) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(f"data.image_size={size}: expected (height, width) in pixels")
    return sides


def _draw(parameters: Any, cache: Path) -> Path:
    """Draws the tiles into a folder of the cache that their parameters name."""
    wanted = {key: parameters[key] for key in parameters}
    known = list(inspect.signature(drawn.write_breakhis_tree).parameters)[1:]
    for stranger in wanted.keys() - set(known):
        raise InputError(f"data.drawn.{stranger}: no such parameter; there are {', '.join(known)}")
    key = hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()[:16]
    return drawn.write_breakhis_tree(cache / "drawn" / key, **wanted)
