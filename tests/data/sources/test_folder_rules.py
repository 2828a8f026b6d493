"""What a folder of tiles is taken for; the files are empty, since only names count."""

import dataclasses

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.sources import earlier_rules
from densenet_flax.data.sources.folder import list_tiles


@pytest.fixture
def tiles_of(tmp_path):
    """Makes the files, and returns the tiles and where what is known about them was found."""

    def list_files(files, **keys):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        config = DataConfig(name="folder", path=str(tmp_path / "t"), **keys)
        return list_tiles(tmp_path / "t", config)

    return list_files


BREAKHIS = [
    "t/benign/SOB_B_A-14-22549AB-40-001.png",
    "t/benign/aug_1_sob_b_f-14-9133-400-012 (2).JPG",
    "t/malignant/SOB_M_DC_14-2523/40X/7.tif",
]


def test_names_of_breakhis_state_the_patients(tiles_of):
    tiles, provenance = tiles_of(BREAKHIS, label_level=0)
    assert provenance.patient_source == "breakhis" and len(tiles) == 3
    with pytest.raises(InputError, match=r"other\.png: nothing says whose it is, while .*SOB_B_A"):
        tiles_of(["t/benign/other.png"], label_level=0)


def test_a_class_that_a_name_of_breakhis_contradicts(tiles_of):
    with pytest.raises(
        InputError, match="its class is Malignant, but its BreakHis name says benign"
    ):
        tiles_of([BREAKHIS[0], "t/Malignant/SOB_B_F-14-9133-400-012.png"])


def test_a_pattern_that_tells_nobody_apart(tiles_of):
    files = [f"t/ps50_idx5/{c}/{n}_idx5_x1.png" for n, c in ((8863, 0), (8864, 1))]
    with pytest.raises(InputError, match="finds the same patient '50' in all 2 paths"):
        tiles_of(files, patient_pattern=r"(\d+)_idx5")
    tiles, _ = tiles_of(files, patient_pattern=r"(\d+)_idx5_x")
    assert {tile.known["patient"] for tile in tiles} == {"8863", "8864"}


def test_two_trees(tiles_of, tmp_path):
    files = [f"{tree}/{c}/p{i}_1.tif" for i, tree in enumerate(("t", "v/w")) for c in "ab"]
    # Patterns are searched in the path from the root of each.
    keys = {"test_path": str(tmp_path / "v" / "w"), "patient_pattern": r"^\w/(p\d)"}
    tiles, provenance = tiles_of([*files, "v/w/a/notes.txt"], **keys)
    assert [(tile.file, tile.label, tile.known["split"]) for tile in tiles] == [
        ("a/p0_1.tif", "a", "train"),
        ("b/p0_1.tif", "b", "train"),
        ("test/a/p1_1.tif", "a", "test"),
        ("test/b/p1_1.tif", "b", "test"),
    ]
    assert [tile.known["patient"] for tile in tiles] == ["p0", "p0", "p1", "p1"]
    assert provenance.left_out == {"test/a/notes.txt": ".txt"}
    for path in ("t", "t/a", "."):
        with pytest.raises(InputError, match="the other way round"):
            tiles_of([], test_path=str(tmp_path / path))


def test_test_images_in_both_trees(tiles_of, tmp_path):
    files = [f"t/{subset}/{c}/1.png" for subset in ("train", "test") for c in "ab"]
    with pytest.raises(InputError, match="has test images of its own"):
        tiles_of([*files, "v/a/1.png", "v/b/1.png"], test_path=str(tmp_path / "v"))
    tiles, _ = tiles_of([f"t/val/{c}/1.png" for c in "ab"])
    assert {tile.known["split"] for tile in tiles} == {"train", "validation", "test"}


def test_a_run_of_an_earlier_version_keeps_its_files_and_classes(tmp_path):
    files = ["test/b/1.png", "train/a/1_mask.png", "train/a/1.png", "train/@eaDir/1.jpg"]
    for file in [*files, "train/.hidden.png", "train/a/2.gif"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    config = DataConfig(name="folder", path=str(tmp_path), patient_pattern=r"\w+", csv="")
    tiles, provenance = earlier_rules.list_tiles(tmp_path, config)
    assert [tile.file for tile in tiles] == sorted(files)
    assert {tile.label for tile in tiles} == {"train", "test"}
    assert {tile.known["patient"] for tile in tiles} == {"train", "test"}
    assert not provenance.subsets_from
    (tmp_path / "t.csv").write_text("file,label,patient_id,case\ntrain/a/1.png,X,1,2")
    config = dataclasses.replace(config, csv=str(tmp_path / "t.csv"), patient_pattern="")
    (tile,), _ = earlier_rules.list_tiles(tmp_path, config)
    assert (tile.label, tile.known) == ("X", {})
