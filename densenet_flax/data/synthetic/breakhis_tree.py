"""A data set of drawn tissue in BreakHis's tree and under its names.

It goes through the very same builder as the real images, so that a demo and the tests exercise what
a user runs, with no network and no patient's data.
"""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from densenet_flax.common.errors import InputError
from densenet_flax.data.breakhis.layout import ROOT
from densenet_flax.data.breakhis.names import MAGNIFICATIONS, SUBTYPES
from densenet_flax.data.synthetic.tissue import SUBTYPES_OF, draw_stain, draw_tile
from densenet_flax.storage.atomic import atomic_dir, writing

# Part of the record beside the tiles: raise it when the same parameters draw other pixels.
VERSION = 2
_RECORD = "drawn.json"


def write_breakhis_tree(
    root: str | os.PathLike[str],
    *,
    benign_patients: int = 12,
    malignant_patients: int = 20,
    tiles_per_patient: int = 12,
    size: tuple[int, int] = (175, 115),
    magnifications: tuple[int, ...] = (100,),
    seed: int = 0,
) -> Path:
    """Draws `root/BreaKHis_v1`, or finds it there already.

    Each patient has one subtype (all eight take turns), one stain and, like real slides, a number
    that appears nowhere else. A tile depends on the seed, its patient and its own number alone.

    Args:
      root: the folder to put `BreaKHis_v1` into; made if missing.
      benign_patients: number of patients with a benign tumour.
      malignant_patients: number of patients with a malignant one.
      tiles_per_patient: tiles of each patient, dealt out to the magnifications in turn.
      size: (width, height) of a tile.
      magnifications: which of 40, 100, 200 and 400 to draw.
      seed: same seed, same files to the last byte.

    Returns:
      The path of `BreaKHis_v1`, which is whole: it gets its name when all tiles are written.

    Raises:
      InputError: a parameter makes no sense, `root` cannot be written to, or another tree is there.
    """
    counts = {
        "benign_patients": benign_patients,
        "malignant_patients": malignant_patients,
        "tiles_per_patient": tiles_per_patient,
    }
    for key, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"drawn.{key}={value}: expected a whole number of at least 1")
    if not (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(isinstance(side, int) and 16 <= side <= 4096 for side in size)
    ):
        raise InputError(f"drawn.size={size}: expected (width, height), each 16 to 4096")
    if not magnifications or not set(magnifications) <= set(MAGNIFICATIONS):
        raise InputError(
            f"drawn.magnifications={magnifications}: expected some of {MAGNIFICATIONS}"
        )
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"drawn.seed={seed}: expected 0 or a positive number")

    target = Path(root).expanduser() / ROOT
    record = json.dumps(
        counts
        | {
            "version": VERSION,
            "size": list(size),
            "magnifications": list(magnifications),
            "seed": seed,
        },
        indent=1,
    )
    if not target.exists():
        with atomic_dir(target) as temporary, writing(target):
            work = _plan(temporary, counts, size, magnifications, seed)
            _draw_all(list(work))
            (temporary / _RECORD).write_text(record)
    found = target / _RECORD
    if not found.is_file() or found.read_text() != record:
        raise InputError(
            f"{target}: holds something else than the tiles asked for; remove it or choose another "
            "folder"
        )
    return target


def _plan(
    root: Path,
    counts: dict[str, int],
    size: tuple[int, int],
    magnifications: tuple[int, ...],
    seed: int,
) -> Iterator[tuple[list[int], int, str, int, tuple[int, int], Path]]:
    """Says for each tile what to draw and where to put it."""
    # Numbers as on slides, unique and in no order that would tell the class.
    patients = counts["benign_patients"] + counts["malignant_patients"]
    numbers = np.random.default_rng([seed, 1]).choice(90_000, patients, replace=False) + 10_000
    for patient, number in enumerate(numbers):
        label = int(patient >= counts["benign_patients"])
        tokens = SUBTYPES_OF[label]
        token = tokens[(patient - label * counts["benign_patients"]) % len(tokens)]
        folder, name = SUBTYPES[token]
        letter = name[0].upper()
        for tile in range(counts["tiles_per_patient"]):
            magnification = magnifications[tile % len(magnifications)]
            path = (
                root
                / "histology_slides/breast"
                / name
                / "SOB"
                / folder
                / f"SOB_{letter}_{token}_14-{number}"
                / f"{magnification}X"
                / f"SOB_{letter}_{token}-14-{number}-{magnification}-"
                f"{tile // len(magnifications) + 1:03d}.png"
            )
            yield [seed, 2, patient, tile], label, token, magnification, size, path


def _draw_all(work: list[Any]) -> None:
    # Threads and not processes: a fork under a running JAX may hang, and what takes the time
    # (Pillow and large NumPy operations) does not hold the interpreter.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(_draw, work)
        bar = tqdm(done, "Drawing", len(work), unit="tile", disable=not sys.stderr.isatty())
        for _ in bar:
            pass


def _draw(item: tuple[list[int], int, str, int, tuple[int, int], Path]) -> None:
    seeds, label, token, magnification, size, path = item
    stain = draw_stain(np.random.default_rng([seeds[0], 3, seeds[2]]))
    rng = np.random.default_rng(seeds)
    image, _ = draw_tile(rng, label, stain, size, subtype=token, magnification=magnification)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "PNG", compress_level=4)
