"""PyTorch's training step from Keras's layer 300, alone: forward, backward and Adam."""

import time

import torch
from torch.nn import functional

from benchmarks.common import answer, median, peer_options
from benchmarks.peers import torch_network
from benchmarks.tail import inputs


def main() -> None:
    """Runs the steps."""
    options = peer_options()
    device = torch_network.pick_device()
    network = torch_network.make(options["weights"]["torch"], 0.0, device)
    optimizer = torch_network.adam(network.freeze("tail"))
    x, label = inputs(options["batch"], options["pixels"])
    dtype = getattr(torch, options["precision"])
    images = torch.from_numpy(x).permute(0, 3, 1, 2).to(device, dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    target = torch.from_numpy(label).long().to(device)
    tail = torch.compile(network.tail) if options["compile"] else network.tail

    def step() -> torch.Tensor:
        with torch_network.precision(options["precision"], device):
            pooled = tail(images)
        loss = functional.cross_entropy(network.head(pooled), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    seconds, losses = [], []
    for _ in range(options["steps"]):
        started = time.perf_counter()
        loss = step()
        torch_network.synchronize(device)
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss))
    answer(
        {
            "device": torch_network.describe(device),
            "step_seconds": median(seconds[2:]),
            "all_seconds": seconds,
            "compile_seconds": max(0.0, seconds[0] - median(seconds[2:])),
            "losses": losses,
            **torch_network.memory(device),
        },
        ("torch", "timm"),
    )


if __name__ == "__main__":
    main()
