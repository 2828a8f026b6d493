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
    """timm, also beside a torchvision that does not fit this PyTorch and that nobody needs here."""
    with contextlib.suppress(RuntimeError):
        import timm

        return timm
    torch.library.register_fake = lambda *_, **__: lambda function: function
    import timm

    return timm


class Network(nn.Module):
    """Backbone, pooling, and the head: dropout, Dense 256 ReLU, dropout, Dense 2."""

    def __init__(self, dropout: float):
        """All weights are timm's random ones until `load`."""
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
        """The weights that all peers start from."""
        state = load_file(path)
        missing = self.load_state_dict(state, strict=False)
        unloaded = [n for n in missing.missing_keys if not n.endswith("num_batches_tracked")]
        if unloaded or missing.unexpected_keys:
            raise ValueError(f"{path}: {unloaded[:3]}, {missing.unexpected_keys[:3]}")

    def prefix(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized images `[N, 3, H, W]` to what enters conv4_block23."""
        for name, module in self.features.named_children():
            if name == f"denseblock{BLOCK}":
                features = [x]
                for layer in list(module.values())[: LAYER - 1]:
                    features.append(layer(features))
                return torch.cat(features, 1)
            x = module(x)
        raise AssertionError

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """What enters conv4_block23 to pooled features `[N, 1920]`, float32."""
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
        """Keras's rule for `'head'` or `'tail'`: frozen layers normalize by running statistics.

        Returns:
          The parameters that train.
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
    """Whether a layer is Keras's layer 300 or one after it."""
    if name.startswith(_IN_CUT_BLOCK):
        return name == f"{_IN_CUT_BLOCK}conv2"
    stage, _, layer = name.partition(".")
    if stage == f"denseblock{BLOCK}":
        return int(layer.partition(".")[0].removeprefix("denselayer")) > LAYER
    return stage in (f"transition{BLOCK}", f"denseblock{BLOCK + 1}", "norm5")


def make(path: str | Path, dropout: float, device: torch.device) -> Network:
    """The network on the device, in channels_last."""
    network = Network(dropout)
    network.load(path)
    return network.to(device, memory_format=torch.channels_last)


def pick_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def precision(dtype: str, device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16, or nothing."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        yield


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with Keras's numbers, in its fastest form."""
    return torch.optim.Adam(parameters, lr=1e-3, eps=1e-7, fused=True)


def synchronize(device: torch.device) -> None:
    """Waits for what was started on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory(device: torch.device) -> dict[str, float]:
    """Peak of the device's memory, where it is not the host's."""
    if device.type != "cuda":
        return {}
    return {"device_peak_gb": torch.cuda.max_memory_allocated() / 1e9}


def describe(device: torch.device) -> str:
    """The device's name."""
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
