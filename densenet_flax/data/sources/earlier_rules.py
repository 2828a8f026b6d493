"""How runs begun by earlier versions read a folder, so that they can be evaluated and resumed.

Each top folder was a class, whatever its name; nothing was left out and no spelling was an error.
"""

import os
from pathlib import Path

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.dataset import Provenance
from densenet_flax.data.sources import patients
from densenet_flax.data.sources.tile_table import Tile, read_tile_table

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def list_tiles(root: Path, config: DataConfig) -> tuple[list[Tile], Provenance]:
    """Returns the tiles that an earlier version found, sorted by name; InputError as there."""
    images = _walk(root)
    if config.csv:
        tiles, _ = read_tile_table(Path(config.csv).expanduser(), root, images, recognize=False)
    else:
        tiles = [Tile(file, path, file.split("/")[0], {}) for file, path in images.items()]
    if not tiles:
        raise InputError(f"{root}: no images in it")
    source = patients.TABLE if "patient" in tiles[0].known else patients.UNKNOWN
    if pattern := config.patient_pattern:
        found = patients.find_patients([tile.file for tile in tiles], pattern=pattern)
        tiles = [
            tile._replace(known={**tile.known, "patient": patient})
            for tile, patient in zip(tiles, found, strict=True)
        ]
        source = patients.PATTERN
    return sorted(tiles, key=lambda tile: tile.file), Provenance(patient_source=source)


def _walk(root: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real_path = os.path.realpath(folder)
        if real_path in visited:
            subfolders.clear()
            continue
        visited.add(real_path)
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and n != "__MACOSX")
        for file in files:
            if file.lower().endswith(_SUFFIXES) and not file.startswith("."):
                path = Path(folder, file)
                images[path.relative_to(root).as_posix()] = path
    return dict(sorted(images.items()))
