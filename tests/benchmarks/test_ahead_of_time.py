"""Compiling for accelerators that are not there, and the network that ours is compared with."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import ahead_of_time
from benchmarks.aot_programs import Case
from benchmarks.peers import textbook
from densenet_flax.models import frontier
from densenet_flax.models.densenet import DenseNet
from densenet_flax.models.init import init_variables
from tests.helpers.networks import randomize

BLOCKS = (1, 2, 1, 1)


def flat(tree):
    """Our variables under the names of Keras's layers."""
    layers = {layer.path: layer.name for layer in frontier.keras_layers(BLOCKS) if layer.path}
    named = {}
    for unit, leaves in tree.items():
        if unit == "head":
            named |= {{"dense_1": "dense_0"}.get(name, name): leaf for name, leaf in leaves.items()}
        elif unit == "bn":
            named["bn"] = leaves
        else:
            named |= {layers[unit, name]: leaf for name, leaf in leaves.items()}
    return named


def test_the_textbook_computes_what_our_network_does():
    ours = DenseNet(BLOCKS, num_classes=2, hidden=(256,), dropout=0.5, implementation="reference")
    variables = randomize(init_variables(ours, 0), 1)
    peer = textbook.Textbook(BLOCKS)
    peers = {name: flat(tree) for name, tree in variables.items()}
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    norms = frontier.resolve("conv4", BLOCKS).train_norms  # so that there are both modes
    options = {"train_norms": norms, "mutable": ["batch_stats"]}
    ours_y, _ = jax.jit(lambda v, x: ours.apply(v, x, **options))(variables, x)
    peer_y, _ = jax.jit(lambda v, x: peer.apply(v, x, **options))(peers, x)
    np.testing.assert_allclose(peer_y, ours_y, rtol=1e-3, atol=1e-3)


def test_the_textbook_trains_what_a_frontier_says():
    cut = frontier.resolve("conv3_block2_1_bn", BLOCKS)
    model = textbook.Textbook(BLOCKS)
    x = jnp.zeros(DenseNet(BLOCKS).input_shape(cut.cut, (2, 32, 32, 3)))
    variables = jax.eval_shape(lambda k: model.init(k, x, start=cut.cut), jax.random.key(0))
    trained, frozen = textbook.split_variables(variables, cut)
    ours = jax.eval_shape(
        DenseNet(BLOCKS, 2, (256,)).init, jax.random.key(0), np.zeros((1, 32, 32, 3))
    )
    mask = flat(cut.mask(ours["params"]))
    for name in variables["params"]:
        assert (name in trained["params"]) == all(jax.tree.leaves(mask[name])), name
        assert (name in frozen["params"]) != (name in trained["params"])
    assert set(trained["batch_stats"]) == cut.train_norms


@pytest.mark.parametrize("network", ["textbook", "reference", "fused"])
@pytest.mark.parametrize("program", ["forward", "head", "conv5_block1", "conv3_block1:pool3:train"])
def test_programs_are_traced_for_the_devices_of_a_mesh(network, program, monkeypatch):
    monkeypatch.setattr("benchmarks.aot_programs.Target.mesh", lambda self: _cpu_mesh())
    case = Case("v5e", network, program, "bfloat16", 2, BLOCKS, image_size=32)
    text = case.trace().lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" in text or "stablehlo.dot_general" in text
    assert ("bf16" in text) == (program != "head")


def _cpu_mesh():
    return jax.sharding.Mesh(np.array(jax.devices("cpu")[:1]), ("data",))


def test_a_table_has_a_dash_where_a_target_has_no_number():
    row = {"target": "h100", "program": "all", "network": "fused", "dtype": "bfloat16", "batch": 32}
    row |= {"gflop": 1.26, "gigabytes": 2, "temporary_mb": 3.4, "kernels": 5, "all_reduces": 6}
    row |= {
        "mega_cycles": None,
        "product_mega_cycles": None,
        "roofline_ms": 7,
        "compile_seconds": 8,
    }
    *_, line = ahead_of_time.table([row]).splitlines()
    assert line == "| h100 | all | fused | bfloat16 | 32 | 1.26 | 2 | 3.4 | 5 | 6 | – | – | 7 | 8 |"


@pytest.mark.parametrize("target, library", [("v5e", "libtpu"), ("h100", "jax_plugins.xla_cuda12")])
def test_the_script_compiles_for_a_device_that_is_not_there(target, library, tmp_path):
    if not (importlib.util.find_spec(library.split(".")[0]) and importlib.util.find_spec(library)):
        pytest.skip(f"{library} is not installed; benchmarks/README.md says how")
    output = tmp_path / "costs.jsonl"
    options = [f"--targets={target}", "--programs=conv3_block1:pool3:train", "--networks=fused"]
    options += ["--blocks=1,1,1,1", "--image_size=32", "--batches=2", f"--output={output}"]
    command = [sys.executable, ahead_of_time.__file__, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(output.read_text())
    assert row["kernels"] > 0 and row["gflop"] > 0
    assert (row["mega_cycles"] is None) == (target == "h100")
    assert f"| {target} |" in done.stdout
