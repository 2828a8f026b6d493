"""Small drawn data sets shared by the tests of this folder."""

import os
import tarfile
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.synthetic.breakhis_tree import DrawnConfig, write_breakhis_tree

_PARAMETERS = {
    "benign_patients": 4,
    "malignant_patients": 4,
    "tiles_per_patient": 2,
    "size": (64, 48),
    "seed": 0,
}


@pytest.fixture
def make_config():
    """Makes a configuration of tiny drawn tiles; keywords change it."""

    def make(**changes) -> DataConfig:
        content = {
            "name": "drawn",
            "path": "",
            "image_size": (24, 32),
            "magnification": 0,
            "drawn": dict(_PARAMETERS),
        }
        return DataConfig.from_config(ConfigDict(content | changes), "data")

    return make


@pytest.fixture(scope="session")
def drawn_tree(tmp_path_factory) -> Path:
    """A folder with BreaKHis_v1 in it: do not change it."""
    root = tmp_path_factory.mktemp("drawn")
    write_breakhis_tree(root, DrawnConfig(**_PARAMETERS, magnifications=(40, 200)))
    return root


@pytest.fixture(scope="session")
def drawn_archive(drawn_tree, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "BreaKHis_v1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        # Files in another order than by name, as in an archive somebody else packed.
        for file in sorted(drawn_tree.rglob("*.png"), reverse=True):
            archive.add(file, file.relative_to(drawn_tree))
    return path


@pytest.fixture(scope="session")
def breakhis_sample() -> Path:
    """Real images; they are not part of the project, so most machines have none."""
    beside = Path(__file__).parents[3] / "shared" / "breakhis_sample"
    path = Path(os.environ.get("BREAKHIS_SAMPLE") or beside)
    if not path.is_dir():
        pytest.skip("no real BreakHis images: set BREAKHIS_SAMPLE to a folder with some")
    return path


@pytest.fixture(scope="session")
def breakhis_folds() -> Path:
    """The official fold files; they come with the images and are not part of the project."""
    beside = Path(__file__).parents[3] / "shared" / "breakhis_folds"
    path = Path(os.environ.get("BREAKHIS_FOLDS") or beside)
    if not path.is_dir():
        pytest.skip("no official fold files: set BREAKHIS_FOLDS to the folder of dsfold1.txt")
    return path
