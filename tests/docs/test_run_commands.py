"""Commands of the documentation, run as they stand there, with tiny networks on drawn tiles."""

import functools
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import densenet_flax
from densenet_flax.data.synthetic.breakhis_tree import DrawnConfig, write_breakhis_tree
from densenet_flax.evaluation.report import plotting
from densenet_flax.experiments import program
from densenet_flax.experiments.command_line import load_config
from densenet_flax.models.densenet import NETWORKS
from tests.docs import small
from tests.docs.pages import PAGES, blocks, commands
from tests.docs.programs import as_main, with_examples
from tests.helpers.program import Program, make_cache

BREAKHIS = "--config=configs/breakhis.py --config.data.path=BreaKHis_v1.tar.gz"
# In this order, in one directory; and a file that is there after each.
DAY = {
    "train --config=configs/quickstart.py --workdir=runs/quickstart": (
        "runs/quickstart/report/report.html"
    ),
    "predict --workdir=runs/quickstart --images=tiles/**/*.png --overlays=maps": "maps/**/*.png",
    "weights convert runs/quickstart model.safetensors": "model.safetensors",
    "predict --model=model.safetensors --images=tiles --output=tiles.parquet": "tiles.parquet",
    "export --workdir=runs/quickstart --output=exported": "exported/README.md",
    "train --config=configs/folder.py --config.data.path=tiles --workdir=runs/mine": (
        "runs/mine/report/report.html"
    ),
    f"preview {BREAKHIS} --workdir=runs/x": "runs/x/preview.png",
    f"train {BREAKHIS} --workdir=runs/breakhis": "runs/breakhis/report/report.html",
    "evaluate --workdir=runs/breakhis --config.tta=True": "runs/breakhis/report/report.html",
    "data table --path=BreaKHis_v1.tar.gz --split=runs/breakhis/split.json": "",
    "ensemble --members=runs/seed0,runs/seed1,runs/seed2 --output=runs/ensemble": (
        "runs/ensemble/report/report.html"
    ),
    "evaluation compare runs/seed0 runs/seed1 runs/stain --output runs/comparison": (
        "runs/comparison/*.html"
    ),
}
# Commands of this package that are only read (test_commands.py), and why.
NOT_RUN = {
    r".*=(19|20|30) epochs.*": "tests/experiments/test_extension.py has it with fewer epochs",
    r".*hf://.*|slide .*|data draw-slides .*": "the Hub and slides: tests/weights, tests/inference",
    r"(train|evaluate) --workdir=runs/mine( .*)?": "tests/test_main.py resumes and evaluates again",
    r".*--coordinator=.*": "needs hosts; tests/common/test_sharding.py runs two processes",
    r".*/breakhis\.py:fold=1.*|data table --path=BreaKHis_v1 --policy=official.*": (
        "the official folds are of BreakHis's own names"
    ),
    r"\w+ .*(labels=subtype|dtype=bfloat16|weights=random|:magnification=|data\.mpp=).*": (
        "only other values of keys"
    ),
    r"cross_validate .*|evaluation folds .*": "tests/experiments/test_cross_validation.py",
    r"weights (download|inspect|convert|export) (densenet201|model\.keras|tumor\.safetensors).*": (
        "needs a download or a file of Keras; tests/weights"
    ),
    r"(predict|export) --model=(model\.safetensors|runs/ensemble) .*": "as with a work directory",
    r"predict --workdir=runs/quickstart --images=tiles/\*\*/\*\.png": "as with --overlays",
    r"(predict|export|evaluate) --workdir=runs/breakhis.*": "as others with runs/quickstart",
    r"weights convert runs/breakhis .*": "as the one of runs/quickstart",
    r"evaluation compare runs/a runs/b.*|evaluation report TEST\.csv .*": "as others of evaluation",
    r"\w+ ?\w*": "a program or one of its commands, without arguments",
}


def package_command(words):
    """What the command line of the package is given, in one spelling; None of other programs."""
    words = with_examples(words)
    if re.fullmatch(r"(\S*/)?python", words[0]) and words[1] == "main.py":
        words = words[1:]
    elif words[1:2] == ["-m"] and words[2].startswith("densenet_flax."):
        return " ".join([words[2].partition(".")[2], *words[3:]])
    elif words[0] != "densenet-flax":
        return None
    if words[1:] and words[1] in program._OTHER_PROGRAMS:
        return " ".join(words[1:])
    arguments = as_main(words[1:])
    modes = [word for word in arguments if word.startswith("--mode=")] or ["--mode=train"]
    rest = [word for word in arguments if not word.startswith("--mode=")]
    return " ".join([modes[0].removeprefix("--mode="), *rest])


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_the_package_is_run_or_there_is_a_reason(page):
    for command in commands(page):
        words = package_command(command.words)
        reasons = [pattern for pattern in NOT_RUN if words and re.fullmatch(pattern, words)]
        assert words is None or words in DAY or reasons, (
            f"{command}: add it to DAY or, with a reason, to NOT_RUN in {__file__}"
        )


def test_what_is_run_or_not_is_on_some_page():
    known = {package_command(command.words) for page in PAGES for command in commands(page)} - {
        None
    }
    assert not [words for words in DAY if words not in known]
    rest = known - set(DAY)
    assert not [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, w) for w in rest)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("day")
    (folder / "cache").mkdir()
    small.write_program(folder, make_cache(folder / "cache"))
    drawn = DrawnConfig(benign_patients=6, malignant_patients=6, tiles_per_patient=2, size=(44, 29))
    write_breakhis_tree(folder, drawn)
    with tarfile.open(folder / "BreaKHis_v1.tar.gz", "w:gz") as archive:
        archive.add(folder / "BreaKHis_v1", "BreaKHis_v1")
    for path in folder.glob("BreaKHis_v1/**/*.png"):
        target = folder / "tiles" / ("benign" if "SOB_B" in path.name else "malignant")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


@pytest.mark.parametrize("words", DAY)
def test_a_command_runs(words, directory):
    first, *arguments = words.split()
    if "runs/seed0" in words and not (directory / "runs/seed0").exists():
        for name in ("seed0", "seed1", "seed2", "stain"):
            shutil.copytree(directory / "runs/breakhis", directory / "runs" / name)
    if first in program._OTHER_PROGRAMS:
        done = Program("-m", f"densenet_flax.{first}", *arguments, cwd=directory).wait()
    else:
        done = Program("main.py", f"--mode={first}", *arguments, cwd=directory).wait()
    assert done.returncode == 0, done.stderr
    assert not DAY[words] or list(directory.glob(DAY[words]))


PYTHON = {"README.md": 2, "docs/quickstart.md": 1, "docs/prediction.md": 1, "docs/report.md": 1}


def test_python_blocks_run(directory, monkeypatch):
    """The first blocks of these pages, one after the other, after the commands."""
    monkeypatch.chdir(directory)
    # What is set up is taken back.
    monkeypatch.setattr(plotting, "png", plotting.png)
    monkeypatch.setattr(plotting, "pdf", plotting.pdf)
    monkeypatch.setitem(NETWORKS, "tiny", None)
    small.set_up()
    config = load_config("configs/quickstart.py")
    fine_tune = functools.partial(densenet_flax.fine_tune, config=config, verbose=False)
    monkeypatch.setattr(densenet_flax, "fine_tune", fine_tune)
    tiles = sorted(directory.glob("tiles/*/*.png"))
    for name in ("tile.png", "a.png"):
        shutil.copy(tiles[0], name)
    Image.open(tiles[-1]).save("b.jpg")
    images = np.stack([np.asarray(Image.open(tile)) for tile in tiles])
    labels = np.array([int(tile.parent.name == "malignant") for tile in tiles])
    patients = np.array([tile.name.split("-")[2] for tile in tiles])
    is_test = np.isin(patients, [patients[labels == k][0] for k in (0, 1)])
    names = {"X_train": images[~is_test], "y_train": labels[~is_test]}
    names |= {"train_patients": patients[~is_test], "images": images[:2]}
    names |= {"X_test": images[is_test], "y_test": labels[is_test]}
    names["test_patients"] = patients[is_test]
    for page, count in PYTHON.items():
        texts = [block.text for block in blocks(page) if block.language == "python"]
        for text in texts[:count]:
            exec(compile(text, page, "exec"), names)
    assert Path("model.safetensors").is_file() and Path("report/report.html").is_file()
    assert names["features"].shape == (1, names["classifier"].num_features)
    assert set(names["prediction"].decision) <= {"benign", "malignant"}
    assert Image.open("map.png").size[0] > 400
