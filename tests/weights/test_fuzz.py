"""Files that HDF5 does not survive, and any JSON as what our own files say of themselves.

`tests/fuzz` damages files of every form. The examples are the seeds that uncovered a bug.
"""

import dataclasses
import functools
import json
import tempfile
import types
from pathlib import Path

import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from densenet_flax.common.errors import InputError
from densenet_flax.weights import (
    StoredOperatingPoint,
    keras_files,
    read_weights,
    save_weights,
)
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.save import export_weights
from tests.weights.helpers import info_of, random_variables

SMALL = Layout((1, 1), growth_rate=2, stem_features=4, num_classes=3)
KERAS = Layout((1, 1), num_classes=3)


@functools.cache
def content(name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if name == "m.safetensors":
            save_weights(path, random_variables(SMALL), info_of(SMALL))
        else:
            export_weights(path, random_variables(KERAS), info_of(KERAS))
        return path.read_bytes()


fuzzing = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize(
    ("name", "bytes_at"),
    [
        ("m.weights.h5", {1843: 51, 2057: 144}),  # HDF5 2.0 loops for ever
        ("m.h5", {857: 255, 24256: 0, 28532: 0}),  # HDF5 2.0 crashes
    ],
)
def test_files_that_libhdf5_does_not_survive(name, bytes_at, tmp_path, monkeypatch):
    """Found by hand-run campaigns of some 10,000 files; other versions of HDF5 may survive them."""
    monkeypatch.setattr(keras_files, "_CPU_SECONDS", 1)
    data = bytearray(content(name))
    for position, byte in bytes_at.items():
        data[position] = byte
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        read_weights(tmp_path / name)


def test_a_crash_of_the_child_is_one_line(tmp_path, monkeypatch):
    whole = content("m.h5")
    died = lambda *_, **__: types.SimpleNamespace(returncode=-11)  # noqa: E731
    monkeypatch.setattr(keras_files.subprocess, "run", died)
    (tmp_path / "m.h5").write_bytes(whole)
    with pytest.raises(InputError, match="crashes HDF5"):
        read_weights(tmp_path / "m.h5")


def test_a_child_that_does_not_end_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_files, "_CPU_SECONDS", 0.001)
    monkeypatch.setattr(keras_files, "_BYTES_PER_CPU_SECOND", 1e12)
    (tmp_path / "m.h5").write_bytes(content("m.h5"))
    with pytest.raises(InputError, match="does not end"):
        read_weights(tmp_path / "m.h5")


# What our own files say of themselves, in every shape that JSON can have.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
point_names = [field.name for field in dataclasses.fields(StoredOperatingPoint)]
point = st.fixed_dictionaries(
    {"threshold": st.floats(0, 1), "temperature": st.floats(0.1, 9), "rule": st.text()},
    optional={"chosen_on": st.text(), **{name: json_values for name in point_names[4:]}},
)
settings_values = st.fixed_dictionaries(
    {},
    optional={
        "image_size": st.lists(st.integers(-1, 5000), max_size=3) | json_values,
        "stain": st.dictionaries(st.sampled_from(["method", "mean", "grid"]), json_values),
        "dtype": st.sampled_from(["float32", "bfloat16", "float64"]) | json_values,
        "patient_group": json_values,
        "patient_pattern": st.text("(a|b)*+?{}[]\\1", max_size=30) | json_values,
        "operating_point": point | json_values,
        "later": json_values,
    },
)


@fuzzing
@given(extra=settings_values | json_values, key=st.text(max_size=9), value=json_values)
@example(extra={"image_size": [1_000_000, 1_000_000]}, key="", value=None)
@example(extra={"operating_point": {"temperature": 0}}, key="", value=None)
def test_any_json_in_the_header(extra, key, value, tmp_path):
    """One line that names the file, or settings that are written as they were read."""
    path = tmp_path / "m.safetensors"
    values = {**info_of(SMALL).to_dict(), key: value, "extra": extra}
    arrays = safetensors.numpy.load(content("m.safetensors"))
    safetensors.numpy.save_file(arrays, path, {"densenet_flax": json.dumps(values)})
    try:
        variables, info = read_weights(path)
    except InputError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error) and len(str(error)) < 1500
        return
    save_weights(path, variables, info)
    again = read_weights(path)[1]
    written, first = (json.dumps(x.to_dict(), sort_keys=True) for x in (again, info))
    assert written == first
