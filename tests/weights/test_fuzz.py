"""Damaged files of every form: one clear line or, where the damage is harmless, whole variables.

Nothing else may come out: no other exception, no wrong shapes, no hang. The examples are the seeds
that uncovered a bug, or stand for a kind of damage.
"""

import dataclasses
import functools
import json
import types
import warnings

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
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
from tests.weights.helpers import info_of, keras_tiny, random_variables, torch_state

SMALL = Layout((1, 1), growth_rate=2, stem_features=4, num_classes=3)
KERAS = Layout((1, 1), num_classes=3)

FORMS = ("m.safetensors", "t.safetensors", "m.weights.h5", "m.h5", "m.keras", "m.pth", "old.pth")


@functools.cache
def content(name):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if name == "m.safetensors":
            save_weights(path, random_variables(SMALL), info_of(SMALL))
        elif name == "t.safetensors":
            safetensors.numpy.save_file(torch_state(random_variables(SMALL)), path)
        elif name.endswith(".h5"):
            export_weights(path, random_variables(KERAS), info_of(KERAS))
        elif name == "m.keras":
            keras_tiny().save(path)
        else:
            torch = pytest.importorskip("torch", reason="writing .pth needs PyTorch")
            state = {k: torch.tensor(v) for k, v in torch_state(random_variables(SMALL)).items()}
            torch.save(state, path, _use_new_zipfile_serialization=name == "m.pth")
        return path.read_bytes()


def read(path, data):
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            variables, info = read_weights(path)
    except InputError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        assert len(str(error)) < 1500
        return None
    shapes = {name: value.shape for name, value in flatten_dict(variables).items()}
    assert shapes == info.layout.tensors()
    assert all(np.isfinite(value).all() for value in flatten_dict(variables).values())
    return variables


fuzzing = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("name", FORMS)
@fuzzing
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
@example(share=0.001)
@example(share=0.5)
@example(share=0.999999)
def test_cut_short_anywhere(name, share, tmp_path):
    whole = content(name)
    # The last bytes of HDF5 may be padding after the last array; then nothing was lost.
    cut = read(tmp_path / name, whole[: int(share * len(whole))])
    assert cut is None or name.endswith("h5")


@pytest.mark.parametrize("name", FORMS)
@fuzzing
@given(
    flips=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6
    ),
    head=st.booleans(),
)
@example(flips=[(0.0, 1)], head=True)
@example(flips=[(0.9999, 255)], head=False)
def test_flipped_bytes(name, flips, head, tmp_path):
    """Anywhere, or within the first 4,000 bytes, where the structure is."""
    data = bytearray(content(name))
    for share, mask in flips:
        data[int(share * (min(4000, len(data)) if head else len(data)))] ^= mask
    read(tmp_path / name, bytes(data))


@pytest.mark.parametrize("name", FORMS)
@fuzzing
@given(data=st.binary(max_size=300))
@example(data=b"")
def test_random_bytes_after_the_right_signature(name, data, tmp_path):
    assert read(tmp_path / name, content(name)[:8] + data) is None


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


@settings(fuzzing, max_examples=200)
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


@pytest.mark.parametrize("name", FORMS)
def test_the_undamaged_file_is_read(name, tmp_path):
    """Or else the tests above would prove nothing."""
    assert read(tmp_path / name, content(name)) is not None
