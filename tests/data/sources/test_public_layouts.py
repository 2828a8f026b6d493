"""The flags of the table of public data sets in docs/data.md, run on drawn trees."""

import json
import re
import shlex
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from densenet_flax.data.data_config import DataConfig
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split_config import SplitConfig

DOC = Path(__file__).parents[3] / "docs" / "data.md"
SLIDES = ["B_A-14-22549AB", "B_A-14-22549CD", "B_F-14-9133", "B_PT-14-22704", "B_TA-14-13200"]
SLIDES += ["M_DC-14-2523", "M_DC-14-3909", "M_LC-14-13412", "M_PC-14-9146", "M_MC-14-10147"]
SLIDES = [f"SOB_{slide}" for slide in SLIDES]


def kind(slide):
    return "benign" if "_B_" in slide else "malignant"


def write_tiles(root, files):
    for file in files:
        rng = np.random.default_rng(zlib.crc32(file.encode()))  # no two tiles are equal
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)


def write_table(path, header, rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in (header, *rows)))


# Each draws a tree below a root and returns the right images of each class, the right patients (0:
# nothing says whose they are), and the right images of the test subset (None: split by patient).


def breakhis_official(root):
    for slide in SLIDES:
        folder = slide.replace("-14", "_14", 1)
        write_tiles(
            root,
            [f"BreaKHis_v1/{kind(slide)}/SOB/{folder}/{m}X/{slide}-{m}-001.png" for m in (40, 100)],
        )
    return {"benign": 10, "malignant": 10}, 9, None


def breakhis_400x_kaggle_split_by_image(root):
    for slide in SLIDES:
        write_tiles(root, [f"train/{kind(slide)}/{slide}-400-00{i}.png" for i in range(3)])
        write_tiles(root, [f"test/{kind(slide)}/{slide}-400-003.png"])
    return {"benign": 20, "malignant": 20}, 9, None


def breakhis_resized_copies_in_class_folders(root):
    write_tiles(
        root, [f"{kind(slide)}/{slide}-100-{i:03d}.jpg" for slide in SLIDES for i in (1, 2)]
    )
    return {"benign": 10, "malignant": 10}, 9, None


def breakhis_folders_of_magnifications(root):
    write_tiles(root, [f"{m}X/{kind(s)}/{s}-{m}-001.png" for s in SLIDES for m in (40, 100)])
    return {"benign": 10, "malignant": 10}, 9, None


def idc_kaggle(root):
    patients = (10253, 10254, 8863, 8864, 9036, 9075)
    write_tiles(
        root,
        [
            f"IDC_regular_ps50_idx5/{p}/{c}/{p}_idx5_x{x}_y1_class{c}.png"
            for p in patients
            for c in (0, 1)
            for x in (1, 51)
            if (p, c) != (10254, 1)
        ],
    )
    return {"0": 12, "1": 10}, 6, None


def lc25000(root):
    classes = ("colon_aca", "colon_n", "lung_aca", "lung_n", "lung_scc")
    write_tiles(
        root,
        [
            f"lung_colon_image_set/{c.split('_')[0]}_image_sets/{c}/{c.replace('_', '')}{i}.jpeg"
            for c in classes
            for i in range(4)
        ],
    )
    return dict.fromkeys(classes, 4), 0, None


def nct_crc_he_100k_with_crc_val_he_7k(root):
    write_tiles(
        root, [f"NCT-CRC-HE-100K/{c}/{c}-A{i}.tif" for c in ("ADI", "LYM") for i in range(6)]
    )
    write_tiles(root, [f"CRC-VAL-HE-7K/{c}/{c}-T{i}.tif" for c in ("ADI", "LYM") for i in range(2)])
    return (
        {"ADI": 8, "LYM": 8},
        0,
        [f"test/{c}/{c}-T{i}.tif" for c in ("ADI", "LYM") for i in (0, 1)],
    )


def kather_2016(root):
    classes = ("01_TUMOR", "02_STROMA", "08_EMPTY")
    write_tiles(
        root,
        [f"Kather_texture_2016_image_tiles_5000/{c}/{i}.tif" for c in classes for i in range(4)],
    )
    return dict.fromkeys(classes, 4), 0, None


def patchcamelyon_kaggle(root):
    ids = [f"{i:040x}" for i in range(12)]
    write_tiles(root, [f"train/{name}.tif" for name in ids])
    write_tiles(root, ["test/unlabeled.tif"])
    write_table(root / "train_labels.csv", ("id", "label"), [(n, i % 2) for i, n in enumerate(ids)])
    return {"0": 6, "1": 6}, 0, None


def bach(root):
    classes = ("Benign", "InSitu", "Invasive", "Normal")
    write_tiles(
        root,
        [f"ICIAR2018_BACH_Challenge/Photos/{c}/{c}{i}.tif" for c in classes for i in range(4)],
    )
    return dict.fromkeys(classes, 4), 0, None


def bracs_regions(root):
    numbers = {"train": (1, 2, 3, 4), "val": (5,), "test": (6,)}
    folder = "BRACS_RoI/latest_version"
    for subset, patients in numbers.items():
        write_tiles(
            root,
            [
                f"{folder}/{subset}/{k}_{c}/BRACS_{p}_{c}_{i}.png"
                for p in patients
                for k, c in enumerate(("N", "PB", "UDH"))
                for i in (1, 2)
            ],
        )
    test = [
        f"{folder}/test/{k}/BRACS_6_{k[2:]}_{i}.png"
        for k in ("0_N", "1_PB", "2_UDH")
        for i in (1, 2)
    ]
    return {"0_N": 12, "1_PB": 12, "2_UDH": 12}, 6, test


def mhist(root):
    rows = []
    for i in range(18):
        write_tiles(root, [f"images/MHIST_{i:03d}.png"])
        label = "SSA" if i % 3 == 0 else "HP"
        rows.append((f"MHIST_{i:03d}.png", label, 5, "test" if i >= 12 else "train"))
    header = ("Image Name", "Majority Vote Label", "Number of Annotators", "Partition")
    write_table(root / "annotations.csv", header, rows)
    return {"HP": 12, "SSA": 6}, 0, [f"images/MHIST_{i:03d}.png" for i in range(12, 18)]


def chaoyang(root):
    for subset, count in (("train", 12), ("test", 8)):
        files = [f"{subset}/{i}.JPG" for i in range(count)]
        write_tiles(root, files)
        labels = [{"name": f, "label": i % 4, "label_A": 0} for i, f in enumerate(files)]
        (root / f"{subset}.json").write_text(json.dumps(labels))
    return dict.fromkeys("0123", 5), 0, [f"test/{i}.JPG" for i in range(8)]


def qupath_tiles_by_slide_and_class(root):
    slides = [f"S{i}" for i in range(6)]
    write_tiles(
        root,
        [
            f"{s}/{c}/{s} [x={x},y=0].png"
            for s in slides
            for c in ("Stroma", "Tumor")
            for x in (0, 1)
        ],
    )
    return {"Stroma": 12, "Tumor": 12}, 6, None


def clam_tiles_by_class_and_slide(root):
    write_tiles(
        root,
        [
            f"{c}/TCGA-AA-{3400 + s}-01Z-00-DX1/{x}_256.png"
            for c in ("normal", "tumor")
            for s in range(4)
            for x in (0, 256)
        ],
    )
    return {"normal": 8, "tumor": 8}, 4, None


def keras_flow_from_directory(root):
    for subset, count in (("train", 6), ("valid", 2), ("test", 2)):
        write_tiles(
            root, [f"{subset}/{c}/{i}.png" for c in ("benign", "malignant") for i in range(count)]
        )
    test = [f"test/{c}/{i}.png" for c in ("benign", "malignant") for i in range(2)]
    return {"benign": 10, "malignant": 10}, 0, test


def folds(root):
    classes = ("benign", "malignant")
    write_tiles(
        root, [f"fold_{k}/{c}/{i}.png" for k in range(1, 6) for c in classes for i in range(2)]
    )
    return dict.fromkeys(classes, 10), 0, [f"fold_2/{c}/{i}.png" for c in classes for i in range(2)]


def rows_of_table():
    """The name and the flags of each data set in the table."""
    table = DOC.read_text().partition("### Public data sets")[2].partition("\n## ")[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in table.splitlines() if line[:1] == "|"]
    return [
        (re.sub(r"\W+", "_", row[0]).strip("_").lower(), row[-1].strip("`")) for row in rows[2:]
    ]


def test_the_table_has_data_sets():
    assert len(rows_of_table()) >= 15


@pytest.mark.parametrize(("name", "line"), rows_of_table(), ids=lambda text: text.split(" ")[0])
def test_the_flags_read_the_layout(name, line, tmp_path, monkeypatch):
    monkeypatch.chdir(DOC.parents[1])
    root = tmp_path / "data"
    classes, patients, test = globals()[name](root)
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    words = shlex.split(line.replace("DIR", str(root)))
    if not words[0].startswith("--config="):
        words.insert(0, "--config=configs/folder.py")
    monkeypatch.setattr(sys, "argv", ["main.py", *words])  # where the flags of a file are looked up
    values(sys.argv)
    content = config.value.to_dict()
    content["data"]["image_size"] = (8, 8)
    dataset = open_dataset(DataConfig.from_config(content["data"], "data"), tmp_path / "cache")
    split = make_split(dataset, SplitConfig.from_config(content["split"], "split"))
    names = np.array(dataset.class_names)[dataset.labels]
    assert Counter(names.tolist()) == classes
    assert dataset.patients_known == bool(patients)
    if patients:
        assert len(set(dataset.patients(split.policy.group))) == patients
        assert split.patient_disjoint
    assert split.policy.kind == ("patient" if test is None else "given")
    if test is not None:
        assert sorted(dataset.files[split.test]) == sorted(test)
