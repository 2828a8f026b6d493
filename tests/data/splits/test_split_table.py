import subprocess
import sys

import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data.__main__ import main
from densenet_flax.data.breakhis.name_list import dataset_of_names, list_file_names
from densenet_flax.data.loading import open_dataset
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split_config import SplitConfig
from densenet_flax.data.splits.split_table import format_split, overlap_rows

# Of each fold: all and benign test images whose case is also in training, in percent.
PUBLISHED = {1: (39, 69), 2: (28, 56), 3: (27, 37), 4: (31, 69), 5: (32, 76)}


@pytest.mark.parametrize("fold", PUBLISHED)
def test_the_overlap_of_the_official_folds(breakhis_folds, fold):
    dataset = dataset_of_names(list_file_names(breakhis_folds / f"dsfold{fold}.txt"))
    split = make_split(dataset, SplitConfig(policy="official", fold=fold))
    rows = overlap_rows(split, dataset)
    seen = {(row["group"], row["class"]): row["with_a_relative_in_training"] for row in rows}
    count = {row["class"]: row["test_images"] for row in rows}
    shares = [round(100 * seen["case70", name] / count[name]) for name in ("all", "benign")]
    assert tuple(shares) == PUBLISHED[fold]
    # The slide that has two subtypes is two of the 82 ids.
    assert (seen["slide81", "all"] == 123) == (fold in (1, 3, 5))
    assert seen["id82", "all"] == 0


def test_the_overlap_as_rows_of_the_report(breakhis_folds):
    dataset = dataset_of_names(list_file_names(breakhis_folds / "dsfold1.txt"))
    rows = overlap_rows(make_split(dataset, SplitConfig(policy="official", fold=1)), dataset)
    assert [(row["group"], row["class"]) for row in rows][:4] == [
        ("case70", "all"),
        ("case70", "benign"),
        ("case70", "malignant"),
        ("slide81", "all"),
    ]
    first, last = rows[0], rows[6]
    assert first["test_images"] == 2904
    assert round(100 * first["with_a_relative_in_training"] / 2904) == PUBLISHED[1][0]
    assert last["group"] == "id82" and last["with_a_relative_in_training"] == 0


def test_the_printed_counts(breakhis_folds, capsys):
    path = str(breakhis_folds / "dsfold1.txt")
    assert main(["table", f"--path={path}", "--policy=official", "--fold=1"]) == 0
    lines = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.split("\n")}
    assert lines["images"][2:] == ["2904", "7909"]
    assert lines["patients by id82"] == ["46", "8", "28", "82"]
    assert lines["patients by case70"][3] == "70" and lines["patients by slide81"][3] == "81"
    for name, count in {"benign": 2480, "ductal_carcinoma": 3451, "40X": 1995}.items():
        assert int(lines[name][3]) == count == sum(map(int, lines[name][:3]))


def test_folders_archives_and_saved_splits(drawn_tree, drawn_archive, tmp_path, capsys):
    names = list_file_names(drawn_tree)
    assert names == list_file_names(drawn_archive) and len(names) == 16
    split = make_split(dataset_of_names(names), SplitConfig(seed=5))
    split.save(tmp_path / "split.json")
    main(["table", f"--path={drawn_archive}", f"--split={tmp_path / 'split.json'}"])
    printed = capsys.readouterr().out
    assert split.hash in printed and "seed 5" in printed
    main(["table", f"--path={drawn_tree}", "--policy=image"])
    assert "not known to keep patients apart" in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("SOB_B_A-14-1-40-001.png\ncat.png\n")
    assert main(["table", f"--path={tmp_path / 'list.txt'}"]) == 1
    assert capsys.readouterr().err.endswith("list.txt: cat.png: not a BreakHis file name\n")
    with pytest.raises(InputError, match=r"data\.labels='eight'"):
        dataset_of_names(["SOB_B_A-14-1-40-001.png"], "eight")
    with pytest.raises(InputError, match="no file names"):
        dataset_of_names([])


def test_the_command_line(drawn_tree):
    command = [sys.executable, "-m", "densenet_flax.data", "table", f"--path={drawn_tree}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "patients by case70" in done.stdout, done.stderr


def test_data_that_is_not_breakhis(tmp_path, make_config):
    for number in range(24):
        folder = tmp_path / "tiles" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / f"p{number // 2 % 12}_{number}.png")
    config = make_config(name="folder", path=str(tmp_path / "tiles"), patient_pattern=r"p\d+")
    dataset = open_dataset(config, tmp_path / "cache")
    split = make_split(dataset, SplitConfig(policy="image", group="patient"))
    printed = format_split(split, dataset)
    assert "patients by patient" in printed and "  b  " in printed
    assert "magnification" not in printed and "0X" not in printed
