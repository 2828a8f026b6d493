"""Which files a path or a pattern selects, and the patients that their names state."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.images.array_cache import ImageOptions
from densenet_flax.data.images.image_table import ImageTable
from densenet_flax.data.sources.folder import FolderSource, list_tiles
from densenet_flax.inference.batch.image_files import (
    ImageFile,
    find_images,
    patients_from_names,
    with_names_in_data,
)
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


def test_a_folder_of_slides_says_how_slides_are_predicted(tmp_path):
    (tmp_path / "x.svs").touch()
    with pytest.raises(InputError, match=r"1 \.svs, which are slides: .*--mode=slide"):
        find_images(str(tmp_path))


def test_the_patient_is_read_from_breakhis_names_or_by_the_pattern():
    name = "SOB_M_DC-14-2523AB-100-004.png"
    breakhis = ImageFile(Path("x") / name, name)
    other = ImageFile(Path("benign/p17_003.png"), "p17_003.png")
    for file, keys, patient in (
        (breakhis, {}, "2523"),
        (breakhis, {"patient_group": "slide81"}, "2523AB"),
        (breakhis, {"patient_group": "id82"}, "ductal_carcinoma/2523AB"),
        (other, {}, ""),
        (other, {"patient_pattern": r"/(\w+)_\d+\.png$"}, "p17"),
        (other, {"patient_pattern": r"p\d+"}, "p17"),
        (other, {"patient_pattern": "q"}, ""),
        (other, {"patient_pattern": "p(x)?"}, ""),
    ):
        assert patients_from_names([file], InferenceSettings(**keys)) == [patient]


def test_a_table_is_not_contradicted_by_names():
    file = ImageFile(Path("x"), "SOB_M_DC-14-2523AB-100-004.png")
    assert patients_from_names([file], InferenceSettings(patient_source="table")) == [""]


# Names with what patterns trip over: digits everywhere, separators, names at the top.
_words = st.text("12p_-", min_size=1, max_size=4)
_patterns = st.sampled_from(
    [r"(\d+)_", r"^\w+/(\d)", r"/(\w+)[_-]", r"p?\d", r"([^/]+)/[^/]*$", r"^([^/]+)/", r"[^/]+"]
)
_breakhis = st.sampled_from(
    ["SOB_B_A-14-1AB-40-001.jpg", "aug_SOB_M_DC-14-23-100-1 (2).PNG", "SOB_B_F_14-7/9.tif"]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(_words, _words, _words), min_size=2, max_size=8, unique=True),
    st.lists(_breakhis, min_size=2, max_size=3, unique=True),
    _patterns | st.just(""),
    st.sampled_from(["keep", "merge"]),
)
def test_prediction_finds_the_patient_that_training_found(names, slides, pattern, similar_names):
    with tempfile.TemporaryDirectory(prefix="2023_04_") as folder:
        root = Path(folder)
        relative = [f"{a}/{b}/{c}.png" for a, b, c in names] if pattern else []
        for name in [*relative, *(f"c{i % 2}/{slide}" for i, slide in enumerate(slides))]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        config = DataConfig(
            name="folder",
            path=str(root),
            label_level=0,
            patient_pattern=pattern,
            similar_names=similar_names,
        )
        try:
            tiles, provenance = list_tiles(root, config)
            source = FolderSource(config, root / "cache", ImageOptions((8, 8)))
        except InputError:  # a pattern that does not fit all names
            return
        table = ImageTable({"file": [tile.file for tile in tiles]}, "")
        patients = source.annotate(table).groups["patient"]
        rule = InferenceSettings(
            patient_group="patient",
            patient_pattern=pattern,
            patient_source=provenance.patient_source,
            merge_patients=similar_names == "merge",
        )
        expected = dict(zip([tile.file for tile in tiles], patients.tolist(), strict=True))
        files = find_images(folder)
        found = patients_from_names(files, rule)
        assert dict(zip([file.name for file in files], found, strict=True)) == expected
        # A part of the data, as a folder, a pattern or a file, has the same patients.
        part = root / tiles[0].file
        for images in (part.parent, part.parent / "*", part):
            for file in with_names_in_data(find_images(str(images)), [folder]):
                name = file.path.relative_to(root).as_posix()
                assert patients_from_names([file], rule) == [expected[name]]
