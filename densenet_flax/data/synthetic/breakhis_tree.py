"""A data set of drawn tissue in BreakHis's tree and under its names.

It is read by the same code as the real images, so that a demo and the tests exercise what a user
runs, with no network and no patient's data.
"""

import dataclasses
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from densenet_flax.common.console import progress_bar
from densenet_flax.common.errors import InputError
from densenet_flax.common.settings import Settings, at_least, setting
from densenet_flax.common.trees import JsonDict
from densenet_flax.data.breakhis.layout import ROOT
from densenet_flax.data.breakhis.names import MAGNIFICATIONS, SUBTYPES
from densenet_flax.data.synthetic.tissue import SUBTYPES_OF, draw_stain, draw_tile
from densenet_flax.storage.atomic import atomic_dir, writing
from densenet_flax.storage.json_files import read_json_object

# Part of the record beside the tiles: raise it when the same parameters draw other pixels.
VERSION = 2
_RECORD_FILE = "drawn.json"


@dataclasses.dataclass(frozen=True)
class DrawnConfig(Settings):
    """The keys of `config.data.drawn`: which tiles to draw.

    Attributes:
      benign_patients: number of patients with a benign tumor.
      malignant_patients: number of patients with a malignant one.
      tiles_per_patient: tiles of each patient, dealt out to the magnifications in turn.
      size: (width, height) of a tile in pixels.
      magnifications: which of 40, 100, 200 and 400 to draw.
      seed: the same seed draws the same files to the last byte.
    """

    benign_patients: int = at_least(1, default=12)
    malignant_patients: int = at_least(1, default=20)
    tiles_per_patient: int = at_least(1, default=12)
    size: tuple[int, int] = setting(
        (175, 115),
        "(width, height), each 16 to 4096",
        lambda size: all(16 <= length <= 4096 for length in size),
    )
    magnifications: tuple[int, ...] = setting(
        (100,),
        f"some of {MAGNIFICATIONS}",
        lambda drawn: drawn and set(drawn) <= set(MAGNIFICATIONS),
    )
    seed: int = at_least(0, default=0)


def write_breakhis_tree(root: str | os.PathLike[str], config: DrawnConfig) -> Path:
    """Draws `root/BreaKHis_v1`, unless it is there already.

    Each patient has one subtype (all eight take turns), one stain and, like real slides, a number
    that appears nowhere else. A tile depends on the seed, its patient and its own number alone.

    Returns:
      The path of `BreaKHis_v1`, which is complete: it gets its name when all tiles are written.

    Raises:
      InputError: `root` cannot be written to, or another tree is there.
    """
    target = Path(root).expanduser() / ROOT
    # Through JSON, which turns tuples into lists, so that it compares with a record that was read.
    record = json.loads(json.dumps({"version": VERSION, **dataclasses.asdict(config)}))
    if not target.exists():
        with atomic_dir(target) as temporary, writing(target):
            _draw_all(temporary, config)
            (temporary / _RECORD_FILE).write_text(json.dumps(record, indent=1))
    if _read_record(target) != record:
        raise InputError(
            f"{target}: holds something other than the requested tiles; remove it or choose "
            "another folder"
        )
    return target


def _read_record(target: Path) -> JsonDict | None:
    """Returns the parameters of the tiles in a folder, or None if they were not drawn."""
    try:
        return read_json_object(target / _RECORD_FILE, "remove the folder")
    except InputError:
        return None


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


def _plan_patients(config: DrawnConfig) -> list[_Patient]:
    # Numbers as on slides, unique and in no order that would reveal the class.
    benign, rng = config.benign_patients, np.random.default_rng([config.seed, 1])
    numbers = rng.choice(90_000, benign + config.malignant_patients, replace=False) + 10_000
    patients = []
    for index, number in enumerate(numbers.tolist()):
        label = int(index >= benign)
        tokens = SUBTYPES_OF[label]
        patients.append(_Patient(index, label, tokens[(index - label * benign) % 4], number))
    return patients


def _draw_all(root: Path, config: DrawnConfig) -> None:
    def draw(patient: _Patient, tile: int) -> None:
        # Seeds per patient and tile, so that the order in which threads draw does not count.
        stain = draw_stain(np.random.default_rng([config.seed, 3, patient.index]))
        rng = np.random.default_rng([config.seed, 2, patient.index, tile])
        sequence, turn = divmod(tile, len(config.magnifications))
        scale = config.magnifications[turn]
        image, _ = draw_tile(
            rng, patient.label, stain, config.size, subtype=patient.token, magnification=scale
        )
        path = root / patient.path(scale, sequence + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, "PNG", compress_level=4)

    tiles = list(itertools.product(_plan_patients(config), range(config.tiles_per_patient)))
    # Threads and not processes: a fork under a running JAX may hang, and what takes the time
    # (Pillow and large NumPy operations) does not hold the interpreter.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(draw, *zip(*tiles, strict=True))
        for _ in progress_bar(len(tiles), "Drawing", "tile", iterable=done):
            pass
