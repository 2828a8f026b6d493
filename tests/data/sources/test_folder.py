import re

import numpy as np
import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import load_split
from densenet_flax.data.splits.split_config import SplitConfig


@pytest.fixture
def open_folder(make_config, root, tmp_path):
    def open_with(**changes):
        config = make_config(name="folder", path=str(root), **changes)
        return open_dataset(config, tmp_path / "cache")

    return open_with


def full_table(root, **columns):
    """A row for each image; columns are functions of its file name."""
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    names = ["file", "label", *columns]
    lines = [",".join(names)]
    for file in files:
        label, name = file.split("/")
        lines.append(",".join([file, label, *(column(name) for column in columns.values())]))
    return "\n".join(lines)


def test_a_folder_per_class(open_folder, root):
    dataset = open_folder()
    assert dataset.class_names == ("normal", "tumour") and len(dataset) == 20
    assert dataset.files[0] == "normal/n0_0.png"
    for i, file in enumerate(dataset.files):
        assert dataset.class_names[dataset.labels[i]] == file.split("/")[0]
        expected = Image.open(root / file).resize((32, 24), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(dataset.images[i], np.asarray(expected))
    assert tuple(dataset.groups) == ("patient",) and not dataset.columns
    assert not dataset.patients_known and len(set(dataset.patients("patient"))) == 20
    assert "nothing says whose" in dataset.notes[0]
    assert not make_split(dataset, SplitConfig(group="patient")).patient_disjoint
    assert open_folder(class_names=("tumour", "normal")).labels[0] == 1


def test_patients_by_pattern(open_folder, tmp_path):
    dataset = open_folder(patient_pattern=r"/([nt]\d)_")
    assert sorted(set(dataset.patients("patient"))) == [f"{c}{i}" for c in "nt" for i in range(5)]
    split = make_split(dataset, SplitConfig(group="patient"))
    assert split.patient_disjoint and dataset.notes == ()
    split.save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", dataset).hash == split.hash
    with pytest.raises(InputError, match=r"normal/n0_0\.png: data\.patient_pattern='z'"):
        open_folder(patient_pattern="z")
    with pytest.raises(InputError, match="not a regular expression"):
        open_folder(patient_pattern="(")
    with pytest.raises(InputError, match="folder has patient; choose"):
        dataset.patients("case70")


def test_patients_and_sites_of_a_table(open_folder, root, write_table):
    table = write_table(full_table(root, patient=lambda name: name[:2], site=lambda name: name[1]))
    dataset = open_folder(csv=str(table))
    assert dataset.patients_known and tuple(dataset.groups) == ("site", "patient")
    assert dataset.files[3] == "normal/n1_1.png"
    assert dataset.patients("patient")[3] == "n1" and dataset.patients("site")[3] == "1"
    split = make_split(dataset, SplitConfig(policy="image", group="site"))
    assert not split.patient_disjoint
    np.testing.assert_array_equal(dataset.images, open_folder().images)


def test_splits_of_a_table(open_folder, root, write_table):
    def split_of(name):
        return {"0": "test", "1": "validation"}.get(name[1], "train")

    table = write_table(full_table(root, patient=lambda name: name[:2], split=split_of))
    dataset = open_folder(csv=str(table))
    split = make_split(dataset, SplitConfig(policy="given", group="patient"))
    assert set(dataset.patients("patient")[split.test]) == {"n0", "t0"}
    assert set(dataset.patients("patient")[split.validation]) == {"n1", "t1"}


def test_files_with_the_same_name_in_two_folders(open_folder, root):
    for label, color in (("normal", "red"), ("tumour", "blue")):
        Image.new("RGB", (9, 9), color).save(root / label / "same.png")
    dataset = open_folder()
    assert {"normal/same.png", "tumour/same.png"} <= set(dataset.files) and len(dataset) == 22


def test_a_patient_with_both_labels_is_named(open_folder, root, write_table):
    table = write_table(full_table(root, patient=lambda name: name[1:2]))
    with pytest.raises(InputError, match="patient 0 of folder has images of more than one class"):
        make_split(open_folder(csv=str(table)), SplitConfig(group="patient"))


def test_bad_images_are_named_or_skipped(open_folder, root):
    (root / "normal" / "n0_0.png").write_bytes(b"")
    (root / "tumour" / "t1_0.png").write_bytes((root / "tumour" / "t1_0.png").read_bytes()[:80])
    Image.new("RGB", (1, 1)).save(root / "tumour" / "t2_0.png")
    with pytest.raises(InputError, match=r"normal/n0_0\.png: is empty"):
        open_folder()
    for _ in range(2):  # prepared, and opened again
        dataset = open_folder(on_bad_image="skip")
        assert len(dataset) == 17 and dataset.images.shape == (17, 24, 32, 3)
        assert "3 image(s) could not be used and were left out: normal/n0_0.png" in dataset.notes[0]
        last = Image.open(root / dataset.files[-1]).resize((32, 24), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(dataset.images[-1], np.asarray(last))
    with pytest.raises(InputError, match=r"data\.on_bad_image='ignore'"):
        open_folder(on_bad_image="ignore")
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the 20 images can be used"):
        open_folder(on_bad_image="skip")


def test_a_folder_of_all_kinds_of_images(open_folder, root):
    """Each becomes RGB or is left out by name; nothing else is disturbed by it."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8)
    image, folder = Image.fromarray(pixels), root / "tumour"
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(folder / "t9_turned.png", exif=exif)
    image.convert("CMYK").save(folder / "t9_cmyk.tif")
    image.convert("L").save(folder / "t9_grey.png")
    image.convert("P").save(folder / "t9_palette.png")
    image.convert("RGBA").save(folder / "t9_alpha.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "t9_sixteen.png")
    image.save(folder / "t9_cut.png")
    (folder / "t9_cut.png").write_bytes((folder / "t9_cut.png").read_bytes()[:-200])
    (folder / "t9_empty.jpg").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "t9_one.bmp")
    Image.new("1", (20_000, 20_000)).save(folder / "t9_slide.png")
    dataset = open_folder(on_bad_image="skip")
    row_of_file = {
        name[len("tumour/t9_") :]: i for i, name in enumerate(dataset.files) if "t9_" in name
    }
    assert sorted(row_of_file) == [
        "alpha.png", "cmyk.tif", "grey.png", "palette.png", "sixteen.png", "turned.png",
    ]  # fmt: skip
    assert "4 image(s) could not be used and were left out" in dataset.notes[0]

    def get(name):
        return dataset.images[row_of_file[name]]

    np.testing.assert_array_equal(get("turned.png"), pixels[::-1, ::-1])
    np.testing.assert_array_equal(get("alpha.png"), pixels)
    np.testing.assert_array_equal(get("sixteen.png"), np.repeat(pixels[..., :1], 3, -1))
    np.testing.assert_array_equal(get("grey.png")[..., 0], np.asarray(image.convert("L")))
    assert len(dataset) == 26
    for name in ("cut.png", "empty.jpg", "one.bmp", "slide.png"):
        other_paths = {path for path in folder.glob("t9_*") if not path.name.endswith(name)}
        hidden = [path.rename(path.with_name("." + path.name)) for path in other_paths]
        with pytest.raises(InputError, match=re.escape(f"tumour/t9_{name}: ")):
            open_folder()
        for path in hidden:
            path.rename(path.with_name(path.name[1:]))


def test_duplicates_are_found_by_their_pixels(open_folder, root):
    first = Image.open(root / "normal" / "n0_0.png")
    first.save(root / "normal" / "n9_0.png", compress_level=1)  # other bytes, same pixels
    Image.open(root / "normal" / "n1_0.png").save(root / "tumour" / "n1_0.png")
    dataset = open_folder(duplicates="keep")
    assert len(dataset) == 22
    assert "2 image(s) appear more than once" in dataset.notes[-1]
    assert "1 of them under different labels" in dataset.notes[-1]
    with pytest.raises(InputError, match=r"n0_0\.png and normal/n9_0\.png.*duplicates='drop'"):
        open_folder(duplicates="error")
    dropped = open_folder(duplicates="drop")
    gone = {"normal/n9_0.png", "normal/n1_0.png", "tumour/n1_0.png"}
    kept = ~np.isin(dataset.files, list(gone))
    np.testing.assert_array_equal(dropped.files, dataset.files[kept])
    np.testing.assert_array_equal(dropped.images, dataset.images[kept])
    np.testing.assert_array_equal(dropped.labels, dataset.labels[kept])
    assert dropped.fingerprint != dataset.fingerprint and len(dropped) == 19
    assert "3 files were left out" in dropped.notes[-1]


def test_folders_that_are_not_a_data_set(open_folder, root, make_config, tmp_path):
    (empty := tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9)).save(root / "loose.png")
    with pytest.raises(InputError, match=r"loose\.png: is not in a class folder"):
        open_folder()
    with pytest.raises(InputError, match="no images in it"):
        open_dataset(make_config(name="folder", path=str(empty)), tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_dataset(make_config(name="folder", path=str(tmp_path / "nowhere")), tmp_path)
    with pytest.raises(InputError, match=re.escape("its class 'normal' is not one of")):
        (root / "loose.png").unlink()
        open_folder(class_names=("tumour", "other"))
    with pytest.raises(InputError, match=r"data\.path is empty"):
        open_dataset(make_config(name="folder"), tmp_path)
