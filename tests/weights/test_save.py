"""Writing: a file is whole or absent."""

import subprocess
import sys

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.weights import read_weights, save_weights
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.save import export_weights
from tests.weights.helpers import RECIPE, TINY, assert_same, info_of, random_variables

WRITERS = {
    "m.safetensors": save_weights,
    "m.weights.h5": export_weights,
    "m.h5": export_weights,
}


@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(name, tmp_path):
    info = info_of(RECIPE, class_names=("benign", "malignant"), license="CC0 1.0", sha256="ab")
    variables = random_variables(RECIPE)
    path = tmp_path / "new" / "folder" / name
    WRITERS[name](path, variables, info)
    read, read_info = read_weights(path)
    assert_same(read, variables)
    assert read_info == info
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_jax_arrays_are_written_too(tmp_path):
    import jax

    variables = jax.tree.map(jax.numpy.asarray, random_variables(TINY))
    save_weights(tmp_path / "m.safetensors", variables, info_of(TINY))
    assert_same(read_weights(tmp_path / "m.safetensors")[0], random_variables(TINY))


@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupted_write_leaves_the_old_file(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(InputError, match="No space"):
        WRITERS[name](path, random_variables(TINY), info_of(TINY))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [name]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from densenet_flax.common.errors import InputError
from densenet_flax.weights import save_weights
from densenet_flax.weights.save import export_weights
from tests_helpers import TINY, info_of, random_variables
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path(sys.argv[1])
try:
    write = save_weights if path.suffix == ".safetensors" else export_weights
    write(path, random_variables(TINY), info_of(TINY))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_fills_up(name, tmp_path):
    """A limit on the size of files stands in for the full disk: writes fail half way."""
    pytest.importorskip("resource", reason="limits of this kind are of Unix")
    folder = tmp_path / "out"
    folder.mkdir()
    code = FULL_DISK.replace("tests_helpers", "tests.weights.helpers")
    from pathlib import Path

    tests = str(Path(__file__).parents[2])
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{code}", folder / name],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "cannot write here" in result.stdout
    assert result.stdout.count("\n") == 1
    assert not list(folder.iterdir())


def test_no_permission(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write here"):
        save_weights(tmp_path / "file" / "m.safetensors", random_variables(TINY), info_of(TINY))


@pytest.mark.parametrize(
    ("write", "name", "word"),
    [
        (save_weights, "m.h5", "ends in .safetensors"),
        (save_weights, "m", "ends in .safetensors"),
        (export_weights, "m.keras", "ends in .h5"),
    ],
)
def test_a_wrong_suffix_is_rejected(write, name, word, tmp_path):
    with pytest.raises(InputError, match=word):
        write(tmp_path / name, random_variables(TINY), info_of(TINY))


def test_a_directory_in_the_way(tmp_path):
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(InputError, match="directory is in the way"):
        save_weights(tmp_path / "m.safetensors", random_variables(TINY), info_of(TINY))


@pytest.mark.parametrize("info", [RECIPE, Layout((1, 1, 1, 1))])
def test_variables_of_another_network_are_rejected(info, tmp_path):
    with pytest.raises(InputError, match="same network"):
        save_weights(tmp_path / "m.safetensors", random_variables(TINY), info_of(info))
    assert not list(tmp_path.iterdir())
