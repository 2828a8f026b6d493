"""`convert --verify`: it agrees where it should, and sees what it should."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from densenet_flax.common.errors import InputError
from densenet_flax.weights import convert, export, read_weights, save_weights
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.load import open_weights
from densenet_flax.weights.verify import relative_difference, run_units, verify
from tests.weights.helpers import (
    TINY,
    info_of,
    keras_recipe,
    keras_tiny,
    random_variables,
    randomize_keras,
    save_keras,
    torch_state,
)

NINE = Layout(TINY.blocks, num_classes=9)


@pytest.fixture
def torch_file(tmp_path):
    pytest.importorskip("torch", reason="the reference runs in PyTorch")
    state = torch_state(random_variables(NINE), "feat_extract.", old=True)
    safetensors.numpy.save_file(state, tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


def units(verification):
    return [line.split()[0] for line in verification[1:-2]]


def test_torch_agrees_unit_by_unit(torch_file, tmp_path):
    result = convert(torch_file, tmp_path / "m.safetensors", verify=True)
    expected = ["stem", "conv2_block1", "pool2", "conv3_block1", "conv3_block2", "pool3"]
    assert units(result.verification)[:6] == expected
    assert units(result.verification)[-2:] == ["norm", "head"]
    assert "PyTorch" in result.verification[0]
    assert "bitwise the same" in result.verification[-1]


@pytest.mark.parametrize("wrong", [{"epsilon": 1e-2}, {"final_relu": True}])
def test_wrong_metadata_give_a_difference(wrong, torch_file):
    variables, info = read_weights(torch_file)
    with open_weights(torch_file) as file:
        right = verify(file, variables, info)
    assert not right.failed_unit and max(right.differences.values()) < 1e-5
    # The reference obeys `info` too, so give it the right one and ours the wrong one.
    ours = dataclasses.replace(info, **wrong)
    images = np.random.default_rng(0).standard_normal((2, 64, 96, 3), np.float32)
    a = run_units(info.build_model(), variables, images)
    b = run_units(ours.build_model(), variables, images)
    assert relative_difference(b["norm"], a["norm"]) > 1e-4


def test_a_wrong_conversion_fails_and_writes_nothing(torch_file, tmp_path, monkeypatch):
    from densenet_flax.weights import torch_names

    swapped = {
        **torch_names.NORM_VARIABLES,
        "weight": ("params", "bias"),
        "bias": ("params", "scale"),
    }
    monkeypatch.setattr(torch_names, "NORM_VARIABLES", swapped)
    with pytest.raises(InputError, match=r"PyTorch and this package differ.*unit stem"):
        convert(torch_file, tmp_path / "m.safetensors", verify=True)
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(("name", "build"), [("m.h5", "flat"), ("m.keras", "sequential")])
def test_keras_whole_models_agree(name, build, tmp_path):
    """With layers that scale pixels and half precision, which the comparison is not to see."""
    keras = pytest.importorskip("keras")
    keras.config.set_dtype_policy("mixed_float16" if name == "m.h5" else "float32")
    try:
        model = keras_recipe(build, keras_tiny(input_shape=(48, 32, 3)))
    finally:
        keras.config.set_dtype_policy("float32")
    if build == "sequential":
        model = keras.Sequential([keras.Input((48, 32, 3)), keras.layers.Rescaling(1 / 255), model])
    randomize_keras(model)
    source = save_keras(model, tmp_path / name)
    result = convert(source, tmp_path / "m.safetensors", verify=True)
    assert "Keras" in result.verification[0]
    assert units(result.verification)[-2:] == ["norm", "probabilities"]


def test_keras_weights_agree(tmp_path, monkeypatch):
    pytest.importorskip("keras", reason="the reference runs in Keras")
    from densenet_flax.weights import keras_reference

    monkeypatch.setattr(
        keras_reference, "_network", lambda info: keras_tiny(input_shape=(None, None, 3))
    )
    model = keras_recipe("sequential", keras_tiny())
    randomize_keras(model)
    source = save_keras(model, tmp_path / "m.weights.h5")
    result = convert(source, tmp_path / "m.safetensors", verify=True)
    assert "Keras" in result.verification[0]
    assert units(result.verification)[-2:] == ["norm", "probabilities"]
    backbone = Layout(TINY.blocks)
    with open_weights(source) as file:  # as `load_backbone` does
        variables, info = file.read(backbone, ignore_head=True), file.info(backbone)
        result = verify(file, variables, info)
    assert (result.framework, list(result.differences)[-1]) == ("Keras", "norm")
    assert not result.failed_unit


def test_without_a_framework_it_says_so(tmp_path):
    save_weights(tmp_path / "a.safetensors", random_variables(NINE), info_of(NINE))
    result = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", verify=True)
    assert "not compared" in result.verification[0]
    assert "bitwise the same" in result.verification[-1]


def test_export_is_verified_too(torch_file, tmp_path):
    result = export(torch_file, tmp_path / "m.weights.h5", verify=True, final_relu=True)
    assert result.info.final_relu
    assert "given by the user" in result.evidence[-1]


def test_difference_is_relative_to_the_largest_value():
    assert relative_difference(np.array([1.0, 4.5]), np.array([1.0, 4.0])) == 0.125
    assert relative_difference(np.zeros(3), np.zeros(4)) == float("inf")
