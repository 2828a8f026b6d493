"""The initial weights of all peers, in a file for each framework: ours, PyTorch and Keras."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from benchmarks.common import answer, peer_options
from densenet_flax.models import frontier
from densenet_flax.models.densenet import DenseNet201
from densenet_flax.models.init import init_variables
from densenet_flax.models.preprocessing import preprocess_input
from densenet_flax.weights import WeightsInfo, export_weights, save_weights

_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_LAYERS = {"0_bn": "norm1", "1_conv": "conv1", "1_bn": "norm2", "2_conv": "conv2"}


def torch_state(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns our variables under the names of `torch_network.Network`."""
    state = {}
    for path, value in jax.tree_util.tree_leaves_with_path(dict(variables)):
        _, unit, *layer, leaf = (entry.key for entry in path)
        if unit == "head":
            name = f"head.{({'dense_1': 1, 'predictions': 4})[layer[0]]}"
        elif unit in ("conv1", "bn"):
            name = {"conv": "features.conv0", "bn": "features.norm0"}[layer[0]] if layer else ""
            name = name or "features.norm5"
        elif unit.startswith("pool"):
            kind = {"conv": "conv", "bn": "norm"}[layer[0]]
            name = f"features.transition{int(unit[4:]) - 1}.{kind}"
        else:
            block, _, number = unit.removeprefix("conv").partition("_block")
            name = f"features.denseblock{int(block) - 1}.denselayer{number}.{_LAYERS[layer[0]]}"
        value = np.asarray(value)
        if leaf == "kernel":
            value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
        variable = "weight" if leaf == "kernel" else _NORM[leaf]
        state[f"{name}.{variable}"] = np.ascontiguousarray(value)
    return state


def with_statistics(model: Any, variables: Mapping[str, Any], images: np.ndarray) -> dict[str, Any]:
    """Replaces the BatchNorm statistics, mean 0 and variance 1, by those of these images."""
    backbone = model.clone(num_classes=0, momentum=0.0)  # 0: take the batch's
    all_norms = frontier.resolve("all", model.blocks).train_norms

    @jax.jit
    def measure(variables, images):
        x = preprocess_input(images)
        return backbone.apply(variables, x, train_norms=all_norms, mutable=["batch_stats"])[1]

    return {**variables, **jax.tree.map(np.asarray, measure(variables, images))}


def main() -> None:
    """Writes the files into `folder`, with measured statistics if train_images.npy exists."""
    folder = Path(peer_options()["folder"])
    model = DenseNet201(num_classes=2, hidden=(256,), dropout=0.5)
    variables = init_variables(model, 0)
    if (folder / "train_images.npy").exists():
        images = np.load(folder / "train_images.npy", mmap_mode="r")
        variables = with_statistics(model, variables, images[:64])
    info = WeightsInfo.of(model, source="benchmark", class_names=("benign", "malignant"))
    save_weights(folder / "ours.safetensors", variables, info)
    export_weights(folder / "keras.weights.h5", variables, info)
    save_file(torch_state(variables), folder / "torch.safetensors")
    answer({}, ("jax",))


if __name__ == "__main__":
    main()
