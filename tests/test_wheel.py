"""What `pip install` gives: a wheel with everything that runs, and nothing beside the package."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import densenet_flax

_ROOT = Path(__file__).parents[1]
_PROJECT = ("densenet_flax", "configs", "pyproject.toml", "setup.py", "requirements.txt")
_TEXTS = ("README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    project = tmp_path_factory.mktemp("project")  # building leaves folders behind
    for name in (*_PROJECT, *_TEXTS):
        copy = shutil.copytree if (_ROOT / name).is_dir() else shutil.copy
        copy(_ROOT / name, project / name)
    code = "import setuptools.build_meta as build; build.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, capture_output=True)
    (path,) = (project / "dist").glob("*.whl")
    return path


def test_a_wheel_has_every_file_of_the_package_and_the_configurations(wheel):
    expected = {f"densenet_flax/{path.relative_to(_ROOT)}" for path in _ROOT.glob("configs/*.py")}
    for path in (_ROOT / "densenet_flax").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            expected.add(path.relative_to(_ROOT).as_posix())
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert b"densenet-flax = densenet_flax.experiments.program:run" in archive.read(entry)
    assert names == expected and "densenet_flax/py.typed" in names
    assert wheel.name.startswith(f"densenet_flax-{densenet_flax.__version__}-")


def test_its_program_finds_configurations_by_name_in_any_folder(wheel, tmp_path):
    site, project = tmp_path / "site", tmp_path / "project"
    zipfile.ZipFile(wheel).extractall(site)
    (project / "configs").mkdir(parents=True)  # somebody's own, which imports ours and its own
    (project / "configs" / "shared.py").write_text("NAME = 'resnet50'\n")
    (project / "configs" / "own.py").write_text(
        "from configs import quickstart\nfrom configs.shared import NAME\n\n\n"
        "def get_config():\n"
        "    config = quickstart.get_config()\n"
        "    config.model.name = NAME\n"
        "    return config\n"
    )
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    code += "from densenet_flax.experiments.program import run; run()"
    words = [sys.executable, "-c", code, "train", "--config=configs/own.py", "--workdir=w"]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: config.model.name='resnet50': expected one of"), done
