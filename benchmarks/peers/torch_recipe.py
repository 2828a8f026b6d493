"""The recipe in PyTorch, optimized: timm's network in channels_last, frozen part in no_grad."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.common import answer, peer_options
from benchmarks.peers import torch_network

options = peer_options()
DEVICE = torch_network.pick_device()
MEAN = torch.tensor([0.485, 0.456, 0.406], device=DEVICE).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], device=DEVICE).view(1, 3, 1, 1)


class Recipe:
    """The network, its data, and one epoch of training or validation."""

    def __init__(self, folder: Path) -> None:
        """Loads weights and images."""
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        self.network = torch_network.make(folder / "torch.safetensors", 0.5, DEVICE)
        self.images = {subset: np.load(folder / f"{subset}_images.npy") for subset in SUBSETS}
        self.labels = {subset: np.load(folder / f"{subset}_labels.npy") for subset in SUBSETS}
        compile_ = torch.compile if options["compile"] else lambda function: function
        self.prefix = compile_(self.network.prefix)
        self.tail = compile_(self.network.tail)
        self.first_step: float | None = None

    def batches(
        self, subset: str, order: np.ndarray
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields normalized images and labels on the device."""
        for start in range(0, len(order), options["batch"]):
            rows = order[start : start + options["batch"]]
            x = torch.from_numpy(self.images[subset][rows]).to(DEVICE)  # NHWC is channels_last
            x = (x.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
            yield x, torch.from_numpy(self.labels[subset][rows]).long().to(DEVICE)

    def pooled(self, x: torch.Tensor, frozen: str) -> torch.Tensor:
        """Returns features `[N, 1920]`; the frozen part saves nothing for the backward pass."""
        with torch_network.precision(options["precision"], DEVICE):
            with torch.no_grad():
                x = self.prefix(x)
                if frozen == "all":
                    return self.tail(x)
            return self.tail(x)

    def train(self, stage: str, optimizer: torch.optim.Optimizer, order: np.ndarray) -> float:
        """Trains one epoch and returns the mean loss."""
        self.network.freeze("tail" if stage == "finetune" else "head")
        losses = []
        for x, label in self.batches("train", order):
            pooled = self.pooled(x, "prefix" if stage == "finetune" else "all")
            loss = functional.cross_entropy(self.network.head(pooled), label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach() * len(label))
            if self.first_step is None:
                torch_network.synchronize(DEVICE)
                self.first_step = time.time()
        return float(sum(losses)) / len(order)

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Returns loss and accuracy on the validation images."""
        self.network.eval()
        loss = correct = torch.zeros((), device=DEVICE)
        n = len(self.labels["validation"])
        for x, label in self.batches("validation", np.arange(n)):
            logits = self.network.head(self.pooled(x, "all"))
            loss = loss + functional.cross_entropy(logits, label, reduction="sum")
            correct = correct + (logits.argmax(1) == label).sum()
        return {
            "validation_loss": float(loss) / n,
            "validation_accuracy": float(correct) / n,
        }


SUBSETS = ("train", "validation")


def main() -> None:
    """Trains the head, then from layer 300."""
    recipe = Recipe(Path(options["folder"]))
    rng = np.random.default_rng(0)
    epochs: list[dict[str, Any]] = []
    trained: dict[str, int] = {}
    for stage, count in zip(("head", "finetune"), options["epochs"], strict=True):
        parameters = recipe.network.freeze("tail" if stage == "finetune" else "head")
        trained[stage] = sum(parameter.numel() for parameter in parameters)
        optimizer = torch_network.adam(parameters)
        for _ in range(count):
            loss = recipe.train(stage, optimizer, rng.permutation(len(recipe.labels["train"])))
            scores = recipe.validate()
            epochs.append({"stage": stage, "loss": loss, **scores, "end": time.time()})
    answer(
        {
            "started": options["spawned"],
            "first_step": recipe.first_step,
            "epochs": epochs,
            "ended": time.time(),
            "trained_parameters": trained,
            **torch_network.memory(DEVICE),
        },
        ("torch", "timm"),
    )


if __name__ == "__main__":
    main()
