"""PyTorch's forward pass: uint8 images to pooled features, by timm's network in channels_last."""

import numpy as np
import torch

from benchmarks.common import answer, peer_options
from benchmarks.peers import torch_network
from benchmarks.peers.timing import images, time_calls


def main() -> None:
    """Times each batch size."""
    options = peer_options()
    device = torch_network.pick_device()
    torch.backends.cudnn.benchmark = True
    network = torch_network.make(options["weights"]["torch"], 0.0, device).eval()
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)

    def forward(x: torch.Tensor) -> torch.Tensor:
        x = (x.permute(0, 3, 1, 2).float() / 255 - mean) / std
        return network.features(x).float().mean((2, 3))

    run = torch.compile(forward) if options["compile"] else forward

    @torch.inference_mode()
    def call(x: np.ndarray) -> np.ndarray:
        with torch_network.precision(options["precision"], device):
            return run(torch.from_numpy(x).to(device)).cpu().numpy()

    times = {}
    for batch in options["batches"]:
        x = images(batch, options["pixels"])
        times[batch] = time_calls(lambda x=x: call(x), options["seconds"])
    answer(
        {
            "device": torch_network.describe(device),
            "batches": times,
            **torch_network.memory(device),
        },
        ("torch", "timm"),
    )


if __name__ == "__main__":
    main()
