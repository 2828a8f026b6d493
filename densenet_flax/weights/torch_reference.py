"""DenseNet in PyTorch, straight from a state dict: what `verify` compares ours with.

It writes the network down a second time on purpose. A comparison proves something only if both
networks differ: this one shares neither the model nor the names nor the layout of arrays with the
conversion that it checks. torchvision has the network as well, but not without the last ReLU
(TIAToolbox) or with hidden layers in the head, and `.pth` files should not need it.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.torch_files import load_network
from densenet_flax.weights.torch_head import read_head
from densenet_flax.weights.torch_networks import select_network


def run_torch(
    path: Path, info: WeightsInfo, images: Float[np.ndarray, "N H W 3"], which: str = ""
) -> dict[str, Float[np.ndarray, "..."]]:
    """Outputs of every unit of the network in a PyTorch file, NHWC, by our unit names."""
    if path.suffix == ".safetensors":
        import safetensors.torch

        network = select_network(safetensors.torch.load_file(path), which)
        assert network is not None  # it was read before
    else:
        network = load_network(path, which)
    return run_state_dict(network.tensors, info, images, torch.float32)


def run_state_dict(
    state: Mapping[str, torch.Tensor],
    info: WeightsInfo,
    images: Float[np.ndarray, "N H W 3"],
    dtype: torch.dtype,
) -> dict[str, Float[np.ndarray, "..."]]:
    """As `run_torch`, from a state dict and in any dtype."""
    network = _DenseNet({_plain_name(name): value.to(dtype) for name, value in state.items()}, info)
    outputs = {}
    with torch.inference_mode():
        x = network.stem(torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2))
        outputs["stem"] = x
        for block, layers in enumerate(info.blocks, start=1):
            # Our names follow Keras, which counts the stem as the first block.
            for layer in range(1, layers + 1):
                x = network.dense_layer(x, f"denseblock{block}.denselayer{layer}")
                outputs[f"conv{block + 1}_block{layer}"] = x
            if block < len(info.blocks):
                x = network.transition(x, f"transition{block}")
                outputs[f"pool{block + 1}"] = x
        outputs["norm"] = x = network.last_norm(x)
        if info.num_classes:
            outputs["head"] = network.head(x)
    nhwc = {name: x.permute(0, 2, 3, 1) if x.ndim == 4 else x for name, x in outputs.items()}
    return {name: x.contiguous().numpy() for name, x in nhwc.items()}


class _DenseNet:
    """The layers of torchvision's DenseNet as functions of its weights, at inference, NCHW."""

    def __init__(self, weights: Mapping[str, torch.Tensor], info: WeightsInfo):
        self.weights = weights
        self.info = info

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.weights["conv0.weight"], stride=2, padding=3)
        return F.max_pool2d(F.relu(self._norm(x, "norm0")), kernel_size=3, stride=2, padding=1)

    def dense_layer(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = F.relu(self._norm(x, f"{name}.norm1"))
        y = F.conv2d(y, self.weights[f"{name}.conv1.weight"])
        y = F.relu(self._norm(y, f"{name}.norm2"))
        y = F.conv2d(y, self.weights[f"{name}.conv2.weight"], padding=1)
        return torch.cat([x, y], dim=1)

    def transition(self, x: torch.Tensor, name: str) -> torch.Tensor:
        x = F.relu(self._norm(x, f"{name}.norm"))
        return F.avg_pool2d(F.conv2d(x, self.weights[f"{name}.conv.weight"]), 2, stride=2)

    def last_norm(self, x: torch.Tensor) -> torch.Tensor:
        x = self._norm(x, "norm5")
        return F.relu(x) if self.info.final_relu else x

    def head(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean(dim=(2, 3))
        shapes = {n: tuple(w.shape) for n, w in self.weights.items() if w.ndim == 2}
        layers = read_head(shapes, x.shape[1], is_ordered=True).layers
        for number, name in enumerate(layers):
            x = F.relu(x) if number else x
            x = F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))
        return x

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        variables = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (self.weights[f"{name}.{variable}"] for variable in variables)
        return F.batch_norm(x, mean, var, weight, bias, eps=self.info.epsilon)


def _plain_name(name: str) -> str:
    """`module.features.denseblock1.denselayer1.norm.1.weight` without what varies."""
    inner = re.search(r"(denseblock\d|transition\d|conv0|norm[05])\..*", name)
    if not inner:
        return name
    return re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", inner[0].replace(".layers.", "."))
