import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from densenet_flax.models.densenet import NETWORKS, DenseNet
from densenet_flax.weights.layout import Layout, infer_layout

HEADS = [{}, {"num_classes": 1000}, {"num_classes": 2, "hidden": (256, 64)}]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_tensors_are_those_of_the_model(name, head):
    model = NETWORKS[name](**head)
    images = jnp.zeros((1, 32, 32, 3))
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    expected = {path: leaf.shape for path, leaf in flatten_dict(tree).items()}
    layout = Layout.of(model)
    assert layout.tensors() == expected
    assert layout.network == name
    assert layout.shapes() == tree


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_infer_layout(name, head):
    layout = Layout.of(NETWORKS[name](**head))
    assert infer_layout(layout.tensors()) == layout


@pytest.mark.parametrize("missing", [0, 1, 40, -1])
def test_infer_layout_with_a_tensor_missing(missing):
    layout = Layout.of(NETWORKS["densenet201"]())
    shapes = layout.tensors()
    del shapes[list(shapes)[missing]]
    assert infer_layout(shapes) == layout


def test_infer_layout_of_something_else_is_none():
    assert infer_layout({}) is None
    assert infer_layout({("params", "fc", "kernel"): (3, 4)}) is None
    shapes = Layout((1, 1, 1)).tensors()
    gap = {path: shape for path, shape in shapes.items() if path[1] != "conv3_block1"}
    assert infer_layout(gap) is None


def test_other_sizes_are_called_densenet():
    layout = Layout.of(DenseNet(blocks=(1, 1)))
    assert layout.network == "densenet"
    assert "1-1" in layout.describe()
