"""The precision of every product, read from the programs that a TPU and a GPU would get."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densenet_flax.common.sharding import make_mesh
from densenet_flax.inference import saliency
from densenet_flax.inference.segments import run_segment
from densenet_flax.models import frontier
from densenet_flax.models.densenet import IMPLEMENTATIONS, DenseNet
from densenet_flax.models.init import init_variables
from densenet_flax.training.stage import Loss, Stage
from densenet_flax.training.train_step import TrainStep

MODEL = DenseNet(blocks=(1, 1), num_classes=2, hidden=(8,), dropout=0.5)  # all kinds of units
IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)


def products(traced: jax.stages.Traced, platform: str) -> list[tuple[str, bool]]:
    """For each convolution and matrix product its factors' dtype and whether it is exact."""
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = []
    for line in text.splitlines():
        if re.search(r"stablehlo\.(convolution|dot_general)\b", line):
            factors = re.search(r" : \((.*)\) ->", line)[1]
            dtypes = set(re.findall(r"(f32|f64|bf16|f16)>", factors))
            found.append(("/".join(sorted(dtypes)), line.count("HIGHEST") == 2))
    return found


def step(model):
    """A step with class weights, which are a product of their own."""
    stage = Stage("s", frontier.resolve("all", model.blocks), steps=10)
    variables = init_variables(model, 0)
    loss = Loss(class_weights=(1.0, 3.0))
    train_step = TrainStep(model, stage, variables, make_mesh(), seed=0, loss=loss)
    rows = IMAGES.shape[:1]
    label, weight = (jax.ShapeDtypeStruct(rows, dtype) for dtype in (np.int32, np.float32))
    return train_step.trace({"inputs": IMAGES, "label": label, "weight": weight})


def forward(model):
    variables = init_variables(model, 0)
    return run_segment.trace(
        model, variables, IMAGES, start="stem", stop=None, preprocessing="torch"
    )


def saliency_map(model):
    """Grad-CAM of a unit within the network, so that there are gradients of convolutions."""
    x = jax.ShapeDtypeStruct(model.input_shape("pool2", IMAGES.shape), model.dtype)
    return saliency._weighted_channels.trace(
        model, init_variables(model, 0), x, np.zeros(2, np.int32), start="pool2", after="pool2"
    )


@pytest.mark.parametrize("program", [forward, step, saliency_map])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_float32_is_float32_on_every_backend(program, implementation):
    traced = program(MODEL.clone(implementation=implementation))
    for platform in ("tpu", "cuda"):
        found = products(traced, platform)
        assert len(found) >= 6
        assert set(found) == {("f32", True)}


@pytest.mark.parametrize("program", [forward, step, saliency_map])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_fast_and_its_float32_is_exact(program, implementation):
    traced = program(MODEL.clone(implementation=implementation, dtype=jnp.bfloat16))
    for platform in ("tpu", "cuda"):
        found = products(traced, platform)
        # In float32: the head, the statistics, the sums of the loss and of the norms.
        assert set(found) == {("bf16", False), ("f32", True)}


def test_logs_and_reports_say_what_is_computed():
    exact = MODEL.clone(implementation="reference").computation
    assert exact == "float32 at highest precision; implementation reference"
    fast = MODEL.clone(implementation="fused", dtype=jnp.bfloat16).computation
    assert fast == "bfloat16, head and statistics in float32; implementation fused"
