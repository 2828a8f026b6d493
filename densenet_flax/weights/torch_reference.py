"""A DenseNet in PyTorch, run straight from a state dict: the other side of `verify`.

It reads the file's own names and layout and shares nothing with our model or converter, and needs
neither torchvision nor timm.
"""

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.torch_files import load_state_dict


def run(
    source: FilePath, info: WeightsInfo, images: np.ndarray, dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """What every unit gives for `images` (NHWC), in NHWC, by our unit names."""
    if source.suffix == ".safetensors":
        import safetensors.torch

        state = safetensors.torch.load_file(source)
    else:
        state = load_state_dict(source)
    return run_state(state, info, images, dtype)


def run_state(
    state: Mapping[str, Any], info: WeightsInfo, images: np.ndarray, dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """As `run`, from a state dict."""
    weights = {_plain(name): value.to(dtype) for name, value in state.items()}
    outputs = {}

    def norm(x, name):
        mean, var, scale, shift = (
            weights[f"{name}.{v}"] for v in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, shift, False, 0.0, info.epsilon)

    def keep(name, x):
        x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
        outputs[name] = x.contiguous().numpy()

    with torch.inference_mode():
        x = torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2)
        x = F.conv2d(x, weights["conv0.weight"], stride=2, padding=3)
        x = F.max_pool2d(F.relu(norm(x, "norm0")), 3, 2, 1)
        keep("stem", x)
        for stage, count in enumerate(info.blocks, start=1):
            for block in range(1, count + 1):
                prefix = f"denseblock{stage}.denselayer{block}"
                y = F.conv2d(F.relu(norm(x, f"{prefix}.norm1")), weights[f"{prefix}.conv1.weight"])
                y = F.relu(norm(y, f"{prefix}.norm2"))
                x = torch.cat([x, F.conv2d(y, weights[f"{prefix}.conv2.weight"], padding=1)], 1)
                keep(f"conv{stage + 1}_block{block}", x)
            if stage < len(info.blocks):
                x = F.relu(norm(x, f"transition{stage}.norm"))
                x = F.avg_pool2d(F.conv2d(x, weights[f"transition{stage}.conv.weight"]), 2, 2)
                keep(f"pool{stage + 1}", x)
        x = norm(x, "norm5")
        x = F.relu(x) if info.final_relu else x
        keep("norm", x)
        if info.num_classes:
            x = x.mean((2, 3))
            dense = [n.removesuffix(".weight") for n, v in weights.items() if v.ndim == 2]
            for name in dense:
                x = F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
                x = x if name == dense[-1] else F.relu(x)
            keep("head", x)
    return outputs


def _plain(name: str) -> str:
    """`module.features.denseblock1.denselayer1.norm.1.weight` without what varies."""
    inner = re.search(r"(denseblock\d|transition\d|conv0|norm[05])\..*", name)
    return re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", inner[0]) if inner else name
