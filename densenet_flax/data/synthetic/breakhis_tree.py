"""A data set of drawn tissue in BreakHis's tree and under its names.

It is read by the same code as the real images, so that a demo and the tests exercise what a user
runs, with no network and no patient's data.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
_RECORD_FILE = "drawn.json"


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
    """Draws `root/BreaKHis_v1`, unless it is there already.

    Each patient has one subtype (all eight take turns), one stain and, like real slides, a number
    that appears nowhere else. A tile depends on the seed, its patient and its own number alone.

    Args:
      root: the folder to put `BreaKHis_v1` into; made if missing.
      benign_patients: number of patients with a benign tumor.
      malignant_patients: number of patients with a malignant one.
      tiles_per_patient: tiles of each patient, dealt out to the magnifications in turn.
      size: (width, height) of a tile in pixels.
      magnifications: which of 40, 100, 200 and 400 to draw.
      seed: the same seed draws the same files to the last byte.

    Returns:
      The path of `BreaKHis_v1`, which is complete: it gets its name when all tiles are written.

    Raises:
      InputError: a bad parameter, `root` cannot be written to, or another tree is there.
    """
    counts = {
        "benign_patients": benign_patients,
        "malignant_patients": malignant_patients,
        "tiles_per_patient": tiles_per_patient,
    }
    _check(counts, size, magnifications, seed)
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
            patients = _plan_patients(benign_patients, malignant_patients, seed)
            _draw_all(temporary, patients, tiles_per_patient, size, magnifications, seed)
            (temporary / _RECORD_FILE).write_text(record)
    found = target / _RECORD_FILE
    if not found.is_file() or found.read_text() != record:
        raise InputError(
            f"{target}: holds something other than the requested tiles; remove it or choose "
            "another folder"
        )
    return target


def _check(
    counts: dict[str, int], size: Sequence[int], magnifications: Sequence[int], seed: int
) -> None:
    for key, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise InputError(f"drawn.{key}={count}: expected a whole number of at least 1")
    if not (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(isinstance(length, int) and 16 <= length <= 4096 for length in size)
    ):
        raise InputError(f"drawn.size={size}: expected (width, height), each 16 to 4096")
    if not magnifications or not set(magnifications) <= set(MAGNIFICATIONS):
        raise InputError(
            f"drawn.magnifications={magnifications}: expected some of {MAGNIFICATIONS}"
        )
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"drawn.seed={seed}: expected 0 or a positive number")


@dataclasses.dataclass(frozen=True)
class _Patient:
    """A patient: position in the data set, class, subtype token and slide number."""

    index: int
    label: int
    token: str
    number: int

    def path(self, magnification: int, sequence: int) -> Path:
        """Returns where a tile lies below `BreaKHis_v1`."""
        subtype, class_name = SUBTYPES[self.token]
        prefix = f"SOB_{class_name[0].upper()}_{self.token}"
        return Path(
            f"histology_slides/breast/{class_name}/SOB/{subtype}/{prefix}_14-{self.number}",
            f"{magnification}X",
            f"{prefix}-14-{self.number}-{magnification}-{sequence:03d}.png",
        )


def _plan_patients(benign: int, malignant: int, seed: int) -> list[_Patient]:
    # Numbers as on slides, unique and in no order that would reveal the class.
    rng = np.random.default_rng([seed, 1])
    numbers = rng.choice(90_000, benign + malignant, replace=False) + 10_000
    patients = []
    for index, number in enumerate(numbers.tolist()):
        label = int(index >= benign)
        tokens = SUBTYPES_OF[label]
        patients.append(_Patient(index, label, tokens[(index - label * benign) % 4], number))
    return patients


def _draw_all(
    root: Path,
    patients: Sequence[_Patient],
    tiles_per_patient: int,
    size: tuple[int, int],
    magnifications: Sequence[int],
    seed: int,
) -> None:
    def draw(patient: _Patient, tile: int) -> None:
        stain = draw_stain(np.random.default_rng([seed, 3, patient.index]))
        rng = np.random.default_rng([seed, 2, patient.index, tile])
        sequence, turn = divmod(tile, len(magnifications))
        image, _ = draw_tile(
            rng,
            patient.label,
            stain,
            size,
            subtype=patient.token,
            magnification=magnifications[turn],
        )
        path = root / patient.path(magnifications[turn], sequence + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, "PNG", compress_level=4)

    tiles = [(patient, tile) for patient in patients for tile in range(tiles_per_patient)]
    # Threads and not processes: a fork under a running JAX may hang, and what takes the time
    # (Pillow and large NumPy operations) does not hold the interpreter.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(draw, *zip(*tiles, strict=True))
        for _ in tqdm(done, "Drawing", len(tiles), unit="tile", disable=not sys.stderr.isatty()):
            pass
