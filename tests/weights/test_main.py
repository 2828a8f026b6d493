"""The command line, as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from densenet_flax.models.densenet import DenseNet201
from densenet_flax.weights import export_weights, official, save_weights
from densenet_flax.weights.__main__ import main
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.safe_reading import file_hash
from tests.helpers.program import Program
from tests.weights.helpers import RECIPE, info_of, random_variables

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ours(tmp_path):
    info = info_of(RECIPE, class_names=("benign", "malignant"), license="CC0 1.0")
    save_weights(tmp_path / "m.safetensors", random_variables(RECIPE), info)
    return str(tmp_path / "m.safetensors")


@pytest.fixture(scope="module")
def official_like(tmp_path_factory):
    """A file of the size and form of the official DenseNet201."""
    layout = Layout.of(DenseNet201(num_classes=1000))
    path = tmp_path_factory.mktemp("official") / "densenet201.h5"
    export_weights(path, random_variables(layout), info_of(layout))
    return path


def test_export_and_convert(ours, tmp_path, capsys):
    assert main(["export", ours, str(tmp_path / "m.weights.h5")]) == 0
    back = str(tmp_path / "back.safetensors")
    assert main(["convert", str(tmp_path / "m.weights.h5"), back, "--verify"]) == 0
    out = capsys.readouterr().out
    assert "2 classes and hidden layers 256" in out
    assert (tmp_path / "back.safetensors").read_bytes() == Path(ours).read_bytes()


def test_flags_override_the_metadata(ours, tmp_path, capsys):
    again = str(tmp_path / "again.safetensors")
    flags = ["--preprocessing=scale", "--no-final-relu", "--epsilon=1e-5", "--licence=CC BY 4.0"]
    assert main(["convert", ours, again, *flags, "--class-names=a, b"]) == 0
    capsys.readouterr()
    assert main(["inspect", again, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)["info"]
    assert (info["preprocessing"], info["final_relu"], info["epsilon"]) == ("scale", False, 1e-5)
    assert (info["class_names"], info["licence"]) == (["a", "b"], "CC BY 4.0")
    assert main(["convert", ours, again, "--class-names=a,b,c"]) == 1
    assert "class_names" in capsys.readouterr().err


def test_inspect(ours, capsys, monkeypatch):
    assert main(["inspect", ours, "--tensors"]) == 0
    out = capsys.readouterr().out
    for word in ("densenet_flax safetensors", "benign, malignant", "torch", "1.001e-05", "CC0"):
        assert word in out
    assert "no known official file" in out
    assert "1×1×64×128  params/conv2_block1/1_conv/kernel" in out
    md5 = file_hash(Path(ours), "md5")
    monkeypatch.setitem(official.OFFICIAL, "ours", official.Official("m", md5))
    main(["inspect", ours])
    assert "official  ours" in capsys.readouterr().out


def test_download(ours, tmp_path, capsys, monkeypatch):
    md5 = file_hash(Path(ours), "md5")
    monkeypatch.setitem(official.OFFICIAL, "x", official.Official("m.safetensors", md5))
    assert main(["download", "x", "--directory", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == ours
    assert main(["download", "resnet50"]) == 1
    assert "densenet201" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "missing.h5", "m.safetensors"],
        ["convert", "missing.h5", "m.h5"],
        ["export", "missing.h5", "m.safetensors"],
        ["inspect", "missing.h5"],
        ["inspect", "."],
        ["inspect", "x" * 300],
        ["download", "densenet161"],
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(arguments, tmp_path):
    result = Program("-m", "densenet_flax.weights", *arguments, cwd=tmp_path).wait()
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize("target", ["out.safetensors", "out.weights.h5"])
def test_converting_densenet201_is_light(target, official_like, tmp_path):
    """The command itself, imports included; and no framework is imported."""
    code = f"""
import sys
from pathlib import Path
def peak():
    status = Path("/proc/self/status")  # getrusage would count what the parent held at the fork
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
before = peak()
from densenet_flax.weights.__main__ import main
command = "convert" if {target!r}.endswith("safetensors") else "export"
assert main([command, {str(official_like)!r}, {str(tmp_path / target)!r}, "--no-verify"]) == 0
print(peak() - before)
assert not {{"keras", "tensorflow", "torch"}} & sys.modules.keys()
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert float(result.stdout.splitlines()[-1]) < 500  # MB
