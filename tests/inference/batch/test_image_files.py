"""Which files a path or a pattern selects, and the patients that their names state."""

from pathlib import Path

import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.inference.batch.image_files import ImageFile, find_images, patient_from_name
from densenet_flax.weights import InferenceSettings


def names_of(pattern):
    return [file.name for file in find_images(str(pattern))]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Empty files: only names count here."""
    root = tmp_path_factory.mktemp("tiles")
    for name in ("a/1.png", "a/2.JPG", "a/notes.txt", "a/.hidden.png", "b/deep/3.tif"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folders_patterns_and_files_select_images(tiles):
    assert names_of(tiles) == ["a/1.png", "a/2.JPG", "b/deep/3.tif"]
    assert names_of(tiles / "**" / "*.png") == ["a/1.png"]
    assert names_of(tiles / "a" / "*") == ["1.png", "2.JPG"]
    assert names_of(tiles / "*" / "deep" / "*.tif") == ["b/deep/3.tif"]
    assert names_of(tiles / "b" / "**" / "*") == ["deep/3.tif"]
    assert names_of(tiles / "a" / "notes.txt") == ["notes.txt"]  # asked for by name


def test_paths_can_be_opened_from_the_current_directory(tiles, monkeypatch):
    monkeypatch.chdir(tiles)
    (file,) = find_images("a/*.png")
    assert file == ImageFile(Path("a/1.png"), "1.png")
    assert names_of("**/*.png") == ["a/1.png"]


def test_odd_folder_names_and_circular_links(tmp_path):
    folder = tmp_path / "[1] ü"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "x.PNG")
    (folder / "loop").symlink_to(folder)
    assert names_of(folder) == ["x.PNG"]


@pytest.mark.parametrize("path", ["none/*.png", "none", "a/*.png"])
def test_no_image_is_an_error(path, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").touch()
    with pytest.raises(InputError, match="no image found; expected a folder, a file or a pattern"):
        find_images(str(tmp_path / path))


def test_the_patient_is_read_from_breakhis_names_or_by_the_pattern():
    name = "SOB_M_DC-14-2523AB-100-004.png"
    breakhis = ImageFile(Path("x") / name, name)
    other = ImageFile(Path("benign/p17_003.png"), "p17_003.png")
    for file, settings, patient in (
        (breakhis, {}, "2523"),
        (breakhis, {"patient_group": "slide81"}, "2523AB"),
        (breakhis, {"patient_group": "id82"}, "ductal_carcinoma/2523AB"),
        (other, {}, ""),
        (other, {"patient_pattern": r"/(\w+)_\d+\.png$"}, "p17"),
        (other, {"patient_pattern": r"p\d+"}, "p17"),
        (other, {"patient_pattern": "q"}, ""),
        (other, {"patient_pattern": "p(x)?"}, ""),
    ):
        assert patient_from_name(file, InferenceSettings(**settings)) == patient
