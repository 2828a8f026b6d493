import subprocess
import sys

import pytest
from PIL import Image

from densenet_flax.common.errors import InputError
from densenet_flax.data import make_split, open_dataset
from densenet_flax.data.__main__ import main
from densenet_flax.data.splits.overlap_table import (
    catalogue,
    names_at,
    overlap,
    overlap_rows,
    table,
)

# Per fold: all and benign test images whose case is also in training, in per cent.
PUBLISHED = {1: (39, 69), 2: (28, 56), 3: (27, 37), 4: (31, 69), 5: (32, 76)}


@pytest.mark.parametrize("fold", PUBLISHED)
def test_the_overlap_of_the_official_folds(breakhis_folds, fold):
    dataset = catalogue(names_at(breakhis_folds / f"dsfold{fold}.txt"))
    found = overlap(make_split(dataset, {"policy": "official", "fold": fold}), dataset)
    shares = [
        round(100 * found["case70"][name][0] / found["case70"][name][1]) for name in ("", "benign")
    ]
    assert tuple(shares) == PUBLISHED[fold]
    assert (found["slide81"][""][0] == 123) == (fold in (1, 3, 5))  # the slide that is two
    assert found["id82"][""][0] == 0


def test_the_overlap_goes_to_the_report(breakhis_folds):
    dataset = catalogue(names_at(breakhis_folds / "dsfold1.txt"))
    rows = overlap_rows(make_split(dataset, {"policy": "official", "fold": 1}), dataset)
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


def test_what_is_printed(breakhis_folds, capsys):
    path = str(breakhis_folds / "dsfold1.txt")
    assert main(["table", f"--path={path}", "--policy=official", "--fold=1"]) == 0
    lines = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.split("\n")}
    assert lines["images"][2:] == ["2904", "7909"]
    assert lines["patients by id82"] == ["46", "8", "28", "82"]
    assert lines["patients by case70"][3] == "70" and lines["patients by slide81"][3] == "81"
    for name, count in {"benign": 2480, "ductal_carcinoma": 3451, "40X": 1995}.items():
        assert int(lines[name][3]) == count == sum(map(int, lines[name][:3]))


def test_folders_archives_and_saved_splits(drawn_tree, drawn_archive, tmp_path, capsys):
    assert names_at(drawn_tree) == names_at(drawn_archive)
    assert len(names_at(drawn_tree)) == 16
    split = make_split(catalogue(names_at(drawn_tree)), {"seed": 5})
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
        catalogue(["SOB_B_A-14-1-40-001.png"], "eight")
    with pytest.raises(InputError, match="no file names"):
        catalogue([])


def test_it_is_a_command(drawn_tree):
    command = [sys.executable, "-m", "densenet_flax.data", "table", f"--path={drawn_tree}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "patients by case70" in done.stdout, done.stderr


def test_other_data_has_a_table_too(tmp_path, make_config):
    for number in range(24):
        folder = tmp_path / "tiles" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / f"p{number // 2 % 12}_{number}.png")
    config = make_config(name="folder", path=str(tmp_path / "tiles"), patient_pattern=r"p\d+")
    dataset = open_dataset(config, tmp_path / "cache")
    config = {"group": "patient", "mixed_patients": "rarest", "policy": "image"}
    printed = table(make_split(dataset, config), dataset)
    assert "patients by patient" in printed and "  b  " in printed
    assert "magnification" not in printed and "0X" not in printed
