"""DenseNet in PyTorch, straight from a state dict: what `verify` compares ours with.

It writes the network down a second time on purpose. A comparison proves something only if both
networks differ: this one shares neither the model nor the names nor the layout of arrays with the
conversion that it checks. torchvision has the network as well, but not without the last ReLU
(TIAToolbox) or with hidden layers in the head, and `.pth` files should not need it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from densenet_flax.weights.formats import recognize
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.torch_files import load_network
from densenet_flax.weights.torch_head import read_head
from densenet_flax.weights.torch_networks import select_network


def run_torch(
    path: Path, info: WeightsInfo, images: Float[np.ndarray, "N H W 3"], which: str = ""
) -> dict[str, Float[np.ndarray, "..."]]:
    """Outputs of every unit of the network in a PyTorch file, NHWC, by our unit names."""
    if recognize(path) == "safetensors":
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
    weights = plain_names({name: value.to(dtype) for name, value in state.items()})
    with torch.inference_mode():
        x = torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2)
        outputs = network_outputs(
            weights, info, x, head_layers(weights) if info.num_classes else ()
        )
    nhwc = {name: x.permute(0, 2, 3, 1) if x.ndim == 4 else x for name, x in outputs.items()}
    return {name: x.contiguous().numpy() for name, x in nhwc.items()}


def network_outputs(
    weights: Mapping[str, torch.Tensor], info: WeightsInfo, x: torch.Tensor, head: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Outputs of every unit, channels first; it can be traced.

    Args:
      weights: a state dict by `plain_names`.
      info: of the network.
      x: preprocessed images, channels first.
      head: `head_layers` of the weights.
    """
    variables = ("running_mean", "running_var", "weight", "bias")

    def norm_relu(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, weight, bias = (weights[f"{name}.{variable}"] for variable in variables)
        x = F.batch_norm(x, mean, var, weight, bias, eps=info.epsilon)
        return F.relu(x) if name != "norm5" or info.final_relu else x

    def conv(x: torch.Tensor, name: str, stride: int = 1, padding: int = 0) -> torch.Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=padding)

    outputs = {}
    x = norm_relu(conv(x, "conv0", stride=2, padding=3), "norm0")
    outputs["stem"] = x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
    for block, layers in enumerate(info.blocks, start=1):
        # Our names follow Keras, which counts the stem as the first block.
        for layer in range(1, layers + 1):
            name = f"denseblock{block}.denselayer{layer}"
            y = conv(norm_relu(x, f"{name}.norm1"), f"{name}.conv1")
            y = conv(norm_relu(y, f"{name}.norm2"), f"{name}.conv2", padding=1)
            outputs[f"conv{block + 1}_block{layer}"] = x = torch.cat([x, y], dim=1)
        if block < len(info.blocks):
            x = conv(norm_relu(x, f"transition{block}.norm"), f"transition{block}.conv")
            outputs[f"pool{block + 1}"] = x = F.avg_pool2d(x, 2, stride=2)
    outputs["norm"] = x = norm_relu(x, "norm5")
    if info.num_classes:
        x = x.mean(dim=(2, 3))
        for number, name in enumerate(head):
            x = F.relu(x) if number else x
            x = F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
        outputs["head"] = x
    return outputs


def head_layers(weights: Mapping[str, torch.Tensor]) -> Sequence[str]:
    """Names of the linear layers of the head, in their order; none without a head."""
    shapes = {name: tuple(w.shape) for name, w in weights.items() if w.ndim == 2}
    features = len(weights["norm5.weight"])
    return read_head(shapes, features, is_ordered=True).layers if shapes else ()


def plain_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict by the names of its layers, without what varies around them."""
    return {_plain_name(name): value for name, value in state.items()}


def _plain_name(name: str) -> str:
    """`module.features.denseblock1.denselayer1.norm.1.weight` without what varies."""
    inner = re.search(r"(denseblock\d|transition\d|conv0|norm[05])\..*", name)
    if not inner:
        return name
    return re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", inner[0].replace(".layers.", "."))
