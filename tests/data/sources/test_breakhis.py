import dataclasses
import shutil

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.loading import open_dataset


def test_both_labels_share_the_prepared_data(make_config, drawn_tree, tmp_path):
    config = make_config(name="breakhis", path=str(drawn_tree))
    two = open_dataset(config, tmp_path)
    eight = open_dataset(dataclasses.replace(config, labels="subtype"), tmp_path)
    assert len(eight.class_names) == 8 and eight.class_names[5] == "lobular_carcinoma"
    names = np.array(eight.class_names)[eight.labels]
    np.testing.assert_array_equal(names, two.columns["subtype"])
    np.testing.assert_array_equal(eight.labels >= 4, two.labels == 1)
    assert len(list(tmp_path.rglob("images.npy"))) == 1
    with pytest.raises(InputError, match=r"data\.labels='nine'"):
        open_dataset(make_config(labels="nine"), tmp_path)


def test_completeness_is_reported_or_required(make_config, drawn_tree, tmp_path):
    content = {"name": "breakhis", "path": str(drawn_tree)}
    dataset = open_dataset(make_config(**content), tmp_path)
    assert dataset.notes == ("not all of BreakHis: 16 of 7909 images",)
    assert dataset.provenance.incomplete.startswith("missing: adenosis 40X 113")
    with pytest.raises(InputError, match="not all of BreakHis: 16 of 7909"):
        open_dataset(make_config(require_complete=True, **content), tmp_path)
    assert open_dataset(make_config(require_complete=True), tmp_path).notes == ()  # drawn


@pytest.fixture
def doubled(drawn_tree, tmp_path):
    """A tree in which, as in BreakHis, the images of one slide appear under two subtypes."""
    tree = shutil.copytree(drawn_tree, tmp_path / "tree")
    for path in sorted(tree.rglob("SOB_M_DC-*.png")):
        copy = path.with_name(path.name.replace("_DC-", "_LC-"))
        shutil.copy(path, copy)
    return tree


def test_policies_for_a_slide_under_two_subtypes(doubled, make_config, tmp_path):
    def opened(**changes):
        config = make_config(name="breakhis", path=str(doubled), **changes)
        return open_dataset(config, tmp_path / "cache")

    kept = opened()
    copies = np.isin(kept.columns["subtype"], ["ductal_carcinoma"]).sum()
    assert copies == 2 and len(kept) == 18
    assert "2 image(s) appear more than once" in kept.notes[-1]
    assert "0 of them under different labels" in kept.notes[-1]
    dropped = opened(duplicates="drop")
    assert len(dropped) == 16
    assert "ductal_carcinoma" in dropped.columns["subtype"]  # the first of each stays
    eight = opened(duplicates="drop", labels="subtype")
    assert len(eight) == 14 and "2 of them under different labels" in eight.notes[-1]
    with pytest.raises(InputError, match=r"SOB_M_DC-.*and SOB_M_LC-"):
        opened(duplicates="error")
    with pytest.raises(InputError, match=r"data\.duplicates='remove'"):
        opened(duplicates="remove")


def test_damaged_images_can_be_skipped(make_config, drawn_tree, tmp_path):
    tree = shutil.copytree(drawn_tree, tmp_path / "tree")
    path = sorted(tree.rglob("*.png"), key=lambda path: path.name)[4]
    path.write_bytes(path.read_bytes()[:99])
    config = make_config(name="breakhis", path=str(tree), on_bad_image="skip")
    for _ in range(2):
        dataset = open_dataset(config, tmp_path / "cache")
        assert len(dataset) == 15 and path.name not in dataset.files
        assert dataset.notes[0].startswith("1 image(s) could not be used and were left out: ")
        assert path.name in dataset.notes[0]


def test_all_else_in_the_folder_is_counted(make_config, drawn_tree, tmp_path):
    tree = shutil.copytree(drawn_tree, tmp_path / "tree")
    (tree / "BreaKHis_v1" / "README.txt").write_text("no image")
    (tree / "holiday.png").write_bytes(b"not in BreaKHis_v1")
    image = sorted(tree.rglob("SOB_*.png"))[0]
    shutil.copy(image, tree / "BreaKHis_v1" / image.name)
    config = make_config(name="breakhis", path=str(tree))
    for labels in ("binary", "subtype"):  # prepared, and from the cache
        dataset = open_dataset(dataclasses.replace(config, labels=labels), tmp_path / "cache")
        assert len(dataset) == 16
        assert sorted(dataset.provenance.left_out.values()) == [
            ".json",
            ".txt",
            "copies of an image under the same name",
            "images outside of BreaKHis_v1",
        ]
    assert not open_dataset(make_config(), tmp_path / "cache").provenance.left_out  # drawn
