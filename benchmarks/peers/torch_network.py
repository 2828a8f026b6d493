"""timm's DenseNet201 with the recipe's head, cut at Keras's layer 300."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

BLOCK, LAYER = 3, 23  # Keras's conv4_block23, whose last convolution is Keras's layer 300
_IN_CUT_BLOCK = f"denseblock{BLOCK}.denselayer{LAYER}."


def import_timm() -> Any:
    """Imports timm, even if the installed torchvision, not needed here, does not fit PyTorch."""
    with contextlib.suppress(RuntimeError):
        import timm

        return timm
    torch.library.register_fake = lambda *_, **__: lambda function: function
    import timm

    return timm


class Network(nn.Module):
    """Backbone, pooling, and the head: dropout, Dense 256 ReLU, dropout, Dense 2."""

    def __init__(self, dropout: float):
        """Makes the network with timm's random weights."""
        super().__init__()
        self.features = import_timm().create_model("densenet201", num_classes=0).features
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(1920, 256),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(256, 2),
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 1.001e-5, 0.01  # Keras's; its momentum is 1 - 0.99

    def load(self, path: str | Path) -> None:
        """Loads the weights that all peers start from."""
        state = load_file(path)
        missing = self.load_state_dict(state, strict=False)
        unloaded = [n for n in missing.missing_keys if not n.endswith("num_batches_tracked")]
        if unloaded or missing.unexpected_keys:
            raise ValueError(f"{path}: {unloaded[:3]}, {missing.unexpected_keys[:3]}")

    def prefix(self, x: torch.Tensor) -> torch.Tensor:
        """Maps normalized images `[N, 3, H, W]` to the input of conv4_block23."""
        for name, module in self.features.named_children():
            if name == f"denseblock{BLOCK}":
                features = [x]
                for layer in list(module.values())[: LAYER - 1]:
                    features.append(layer(features))
                return torch.cat(features, 1)
            x = module(x)
        raise AssertionError

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """Maps the input of conv4_block23 to pooled features `[N, 1920]`, float32."""
        begun = False
        for name, module in self.features.named_children():
            if name == f"denseblock{BLOCK}":
                begun, features = True, [x]
                for layer in list(module.values())[LAYER - 1 :]:
                    features.append(layer(features))
                x = torch.cat(features, 1)
            elif begun:
                x = module(x)
        return x.float().mean((2, 3))

    def freeze(self, trainable: str) -> list[nn.Parameter]:
        """Freezes all but `'head'` or `'tail'`; as in Keras, frozen norms use running statistics.

        Returns:
          The trainable parameters.
        """
        self.train()
        for name, module in self.features.named_modules():
            if not isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                continue
            trains = trainable == "tail" and _is_after_frontier(name)
            module.train(trains)
            module.requires_grad_(trains)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def _is_after_frontier(name: str) -> bool:
    """Returns whether a layer is Keras's layer 300 or a later one."""
    if name.startswith(_IN_CUT_BLOCK):
        return name == f"{_IN_CUT_BLOCK}conv2"
    part, _, layer = name.partition(".")
    if part == f"denseblock{BLOCK}":
        return int(layer.partition(".")[0].removeprefix("denselayer")) > LAYER
    return part in (f"transition{BLOCK}", f"denseblock{BLOCK + 1}", "norm5")


def make(path: str | Path, dropout: float, device: torch.device) -> Network:
    """Returns the network on the device, in channels_last."""
    network = Network(dropout)
    network.load(path)
    return network.to(device, memory_format=torch.channels_last)


def pick_device() -> torch.device:
    """Returns the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def precision(dtype: str, device: torch.device) -> Iterator[None]:
    """Enables autocast if `dtype` is bfloat16."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        yield


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Returns Adam with Keras's settings, in its fastest form (fused)."""
    return torch.optim.Adam(parameters, lr=1e-3, eps=1e-7, fused=True)


def synchronize(device: torch.device) -> None:
    """Waits for pending work on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory(device: torch.device) -> dict[str, float]:
    """Returns the peak of a GPU's memory; {} on a CPU."""
    if device.type != "cuda":
        return {}
    return {"device_peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def describe(device: torch.device) -> str:
    """Returns the name of the device."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
