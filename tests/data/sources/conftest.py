"""A folder of tiles."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def root(tmp_path):
    """Two classes, five patients each, two tiles of each patient."""
    rng = np.random.default_rng(0)
    for label in ("normal", "tumour"):
        (tmp_path / "tiles" / label).mkdir(parents=True)
        for patient in range(5):
            for tile in range(2):
                pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
                name = f"{label[0]}{patient}_{tile}.png"
                Image.fromarray(pixels).save(tmp_path / "tiles" / label / name)
    return tmp_path / "tiles"


@pytest.fixture
def write_table(root):
    """Writes a CSV beside the folder and returns its path."""

    def write(text, encoding="utf-8"):
        path = root.parent / "tiles.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write
