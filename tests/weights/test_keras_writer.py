"""What we export loads into Keras, in each way in which people build the model."""

import numpy as np
import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.weights.layout import Layout
from densenet_flax.weights.save import export_weights
from tests.weights.helpers import (
    RECIPE,
    TINY,
    assert_same,
    info_of,
    keras_recipe,
    keras_tiny,
    keras_values,
    random_variables,
)


@pytest.mark.parametrize("build", ["sequential", "nested", "flat"])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_h5_loads_into_a_fine_tuned_model(build, frozen, tmp_path):
    variables = random_variables(RECIPE)
    export_weights(tmp_path / "m.weights.h5", variables, info_of(RECIPE))
    base = keras_tiny()
    base.trainable = not frozen
    model = keras_recipe(build, base)
    model.load_weights(tmp_path / "m.weights.h5")
    assert_same(keras_values(model), variables)


@pytest.mark.parametrize("frozen", [False, True])
def test_legacy_h5_loads_into_a_model_extended_layer_by_layer(frozen, tmp_path):
    variables = random_variables(RECIPE)
    export_weights(tmp_path / "m.h5", variables, info_of(RECIPE))
    base = keras_tiny()
    base.trainable = not frozen
    model = keras_recipe("flat", base)
    model.load_weights(tmp_path / "m.h5")
    assert_same(keras_values(model), variables)


def test_legacy_h5_loads_into_a_nested_base_by_name(tmp_path):
    variables = random_variables(RECIPE)
    export_weights(tmp_path / "m.h5", variables, info_of(RECIPE))
    base = keras_tiny()
    keras_recipe("sequential", base)
    base.load_weights(tmp_path / "m.h5", by_name=True)
    backbone = {**variables, "params": {**variables["params"]}}
    del backbone["params"]["head"]
    assert_same(keras_values(base), backbone)


@pytest.mark.parametrize("name", ["m.weights.h5", "m.h5"])
@pytest.mark.parametrize("classes", [0, 5])
def test_it_loads_into_the_bare_network(name, classes, tmp_path):
    layout = Layout(TINY.blocks, num_classes=classes)
    variables = random_variables(layout)
    export_weights(tmp_path / name, variables, info_of(layout))
    model = keras_tiny(classes)
    model.load_weights(tmp_path / name)
    assert_same(keras_values(model), variables)


def test_both_names_of_an_array_share_its_data(tmp_path):
    export_weights(tmp_path / "m.weights.h5", random_variables(TINY), info_of(TINY))
    export_weights(tmp_path / "m.h5", random_variables(TINY), info_of(TINY))
    sizes = [(tmp_path / name).stat().st_size for name in ("m.weights.h5", "m.h5")]
    assert sizes[0] < 1.2 * sizes[1]


def test_a_long_list_of_layers_is_split_into_attributes(tmp_path):
    """Keras splits `layer_names` where it exceeds 64 KiB: a network of 1,200 blocks would."""
    import h5py

    from densenet_flax.weights import keras_writer

    names = [f"conv2_block{i}_1_conv".ljust(40, "x") for i in range(3000)]
    layers = [keras_writer._Layer("conv2d", name, {}) for name in names]
    with h5py.File(tmp_path / "m.h5", "w") as file:
        keras_writer._write_legacy(file, layers)
        written = [n for i in range(3) for n in file.attrs[f"layer_names{i}"]]
    assert [name.decode() for name in written] == names


@pytest.mark.parametrize(
    ("layout", "fields", "word"),
    [
        (TINY, {"final_relu": False}, "ReLU"),
        (TINY, {"epsilon": 1e-3}, "epsilon"),
        (Layout((1, 1), growth_rate=48, stem_features=96), {}, "Keras cannot build"),
    ],
)
def test_networks_that_keras_lacks_are_rejected(layout, fields, word, tmp_path):
    with pytest.raises(InputError, match=word):
        export_weights(tmp_path / "m.h5", random_variables(layout), info_of(layout, **fields))
    assert not list(tmp_path.iterdir())


def test_the_epsilon_of_pytorch_is_accepted(tmp_path):
    export_weights(tmp_path / "m.h5", random_variables(TINY), info_of(TINY, epsilon=1e-5))
    assert np.isclose(1e-5, 1.001e-5, rtol=0.01)
