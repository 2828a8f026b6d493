"""A classifier as the folder that WSInfer and QuPath's extension for it read.

`torchscript_model.pt` takes patches as they prepare them, and its outputs are logits whose softmax,
which they apply, is the calibrated probability. `config.json` says how large a patch is.
"""

import io
import json
import math
import warnings
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from densenet_flax.common.errors import InputError, printable
from densenet_flax.common.trees import JsonDict, Variables
from densenet_flax.export.predict_fn import Outputs, PredictFn, Steps
from densenet_flax.inference.classifier import Classifier, ImageBatch
from densenet_flax.inference.ensemble import Ensemble
from densenet_flax.models.preprocessing import MEAN_STD

if TYPE_CHECKING:
    import torch

NETWORK_FILE, CONFIG_FILE = "torchscript_model.pt", "config.json"  # the names that are looked for
# How far the sides of a field may differ: less than a pixel of most inputs.
_SQUARE = 0.003
_STEPS = ("start", "width", "rise")
_SLIDES = "use it on slides with --mode=slide, whose tiles.geojson QuPath opens"


class Patch(NamedTuple):
    """A square patch of a slide: pixels of a side, and micrometers per pixel."""

    pixels: int
    spacing: float


def check_expressible(classifier: Classifier) -> Patch:
    """The patch of a classifier; InputError if their files cannot say what it computes."""
    inference = classifier.info.inference
    if classifier.is_multilabel:
        raise InputError(
            "WSInfer's probabilities are a softmax, and this network's classes are independent; "
            f"{_SLIDES}"
        )
    if inference.stain.get("method", "none") != "none":
        raise InputError(
            "WSInfer has no stain normalization, and this network was trained with "
            f"{inference.stain['method']}: its probabilities would be wrong; {_SLIDES}"
        )
    if inference.field_um is None:
        raise InputError(
            "WSInfer needs the size of a tile in micrometers, which this network does not state; "
            "evaluate the run again with --config.data.mpp=…, the micrometers per pixel of its "
            "tiles"
        )
    (height, width), size = inference.field_um, classifier.image_size
    if abs(height / width - 1) > _SQUARE or size[0] != size[1]:
        raise InputError(
            f"WSInfer reads square patches, and this network sees {height:.4g}×{width:.4g} µm "
            f"(height × width) as {size[0]}×{size[1]} pixels: tissue in other "
            f"proportions would get wrong probabilities; {_SLIDES}, or train on square tiles"
        )
    pixels = round(height / inference.mpp[0]) if inference.mpp else size[0]
    return Patch(pixels, height / pixels)


def describe(classifier: Classifier) -> JsonDict:
    """The content of `config.json`."""
    patch = check_expressible(classifier)
    mean, std = MEAN_STD[_preprocessing(classifier)]
    names = [printable(name) for name in classifier.class_names]
    return {
        "spec_version": "1.0",
        "architecture": classifier.info.network,
        "num_classes": len(names),
        "class_names": names,
        "patch_size_pixels": patch.pixels,
        "spacing_um_px": patch.spacing,
        "transform": [
            # The same filter as in training, Pillow's bilinear one, in WSInfer.
            {"name": "Resize", "arguments": {"size": classifier.image_size[0]}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(mean), "std": list(std)}},
        ],
    }


def explain(classifier: Classifier) -> JsonDict:
    """What a reader of the folder has to know: the patch, and the threshold that is not in it."""
    patch, point = check_expressible(classifier), classifier.operating_point
    summary: JsonDict = {"side_um": patch.pixels * patch.spacing, **patch._asdict()}
    if len(classifier.class_names) == 2:
        # They color a patch by its likelier class; ours is decided on the probability before it is
        # calibrated.
        summary["threshold"] = float(point.calibrate(np.array([point.threshold]))[0])
    return summary


def serialize(classifier: Classifier) -> dict[str, bytes]:
    """The files of the folder by name.

    Raises:
      InputError: their files cannot say what the classifier computes, or PyTorch is not installed.
    """
    config = describe(classifier)
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "WSInfer's network is a file of PyTorch; pip install 'densenet_flax[torch]'"
        ) from error
    size = classifier.image_size
    # Two images, as a batch of one could be mistaken for a constant.
    example = torch.zeros(2, 3, *size)
    buffer = io.BytesIO()
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        # WSInfer and QuPath read TorchScript, which PyTorch calls deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(_module(classifier), example, check_trace=False)
        torch.jit.save(traced, buffer)
    text = json.dumps(config, indent=2) + "\n"
    return {NETWORK_FILE: buffer.getvalue(), CONFIG_FILE: text.encode()}


def load(files: dict[str, bytes]) -> PredictFn:
    """The files as a function of prepared images, computed as WSInfer does."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = torch.jit.load(io.BytesIO(files[NETWORK_FILE]), map_location="cpu")
    config = json.loads(files[CONFIG_FILE])
    normalize = config["transform"][-1]["arguments"]

    def predict(images: ImageBatch) -> Outputs:
        mean, std = (torch.tensor(normalize[name])[:, None, None] for name in ("mean", "std"))
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            calibrated = torch.softmax(network((x - mean) / std), dim=1).numpy()
        return {"calibrated": calibrated}

    return predict


def _preprocessing(classifier: Classifier) -> str:
    """The mode of all networks: a folder has one normalization."""
    members = classifier.members if isinstance(classifier, Ensemble) else (classifier,)
    modes = {member.info.preprocessing for member in members}
    if len(modes) > 1:
        raise InputError(
            "WSInfer normalizes a patch in one way, and the networks of this ensemble in "
            f"{len(modes)} ({', '.join(sorted(modes))}); {_SLIDES}"
        )
    return modes.pop()


def _module(classifier: Classifier) -> "torch.nn.Module":
    """The classifier as a module from normalized patches, channels first, to logits [N, K]."""
    import torch

    from densenet_flax.weights.torch_reference import head_layers, network_outputs, plain_names
    from densenet_flax.weights.torch_writer import torch_state_dict

    class Network(torch.nn.Module):
        """The logarithms of a network's own probabilities."""

        def __init__(self, classifier: Classifier, variables: Variables):
            super().__init__()
            self.info, self.views = classifier.info, classifier.tta
            self.classes = len(classifier.class_names)
            state = torch_state_dict(jax.tree.map(np.asarray, variables))
            arrays = {n: a for n, a in state.items() if not n.endswith("num_batches_tracked")}
            weights = plain_names({name: torch.tensor(array) for name, array in arrays.items()})
            self.head = head_layers(weights)
            # Parameters, because WSInfer asks them for the device; their names have no dots.
            self.names = {name: name.replace(".", "_") for name in weights}
            for name, tensor in weights.items():
                parameter = torch.nn.Parameter(tensor, requires_grad=False)
                self.register_parameter(self.names[name], parameter)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            views = _symmetries(x) if self.views else [x]
            weights = {name: getattr(self, attribute) for name, attribute in self.names.items()}
            logits = network_outputs(weights, self.info, torch.cat(views), self.head)["head"]
            if self.info.num_classes == 1:  # P(positive): two logits that differ by the output
                logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
            scores = torch.log_softmax(logits, dim=1).reshape(len(views), -1, self.classes)
            return torch.logsumexp(scores, dim=0) - math.log(len(views))

    class Calibrated(torch.nn.Module):
        """Logits whose softmax is the calibrated probability of one network or several."""

        start: torch.Tensor
        width: torch.Tensor
        rise: torch.Tensor
        shift: torch.Tensor

        def __init__(self, classifier: Classifier):
            super().__init__()
            own = [(classifier, classifier.variables)]
            if isinstance(classifier, Ensemble):
                own = list(zip(classifier.members, classifier.variables.values(), strict=True))
                self.combination = classifier.combination
            self.networks = torch.nn.ModuleList(Network(*one) for one in own)
            self.point = point = classifier.operating_point
            # Buffers, because constants of a traced function stay on the CPU.
            steps = dict(zip(_STEPS, Steps.of(point.knots)[1:], strict=True)) if point.knots else {}
            shift = (
                np.array([0, point.shift], np.float32) if point.shift else np.zeros(1, np.float32)
            )
            for name, array in (*steps.items(), ("shift", shift)):
                self.register_buffer(name, torch.from_numpy(array))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self._combine([network(x) for network in self.networks])
            if not self.point.knots:
                return scores / self.point.temperature + self.shift
            passed = (scores[:, 1:].exp() - self.start) / self.width
            first = float(Steps.of(self.point.knots).first)
            positive = first + (passed.clamp(0, 1) * self.rise).sum(1)
            # A sum of float32 may be above 1, which has no logarithm on the other side.
            positive = positive.clamp(0, 1)
            return torch.log(torch.stack([1 - positive, positive], 1))

        def _combine(self, scores: list[torch.Tensor]) -> torch.Tensor:
            if len(scores) == 1:
                return scores[0]
            weighted = zip(self.combination.weights, scores, strict=True)
            if self.combination.combine == "probabilities":
                # Members of weight 0 have no logarithm, and add nothing.
                shifted = [s + math.log(w) for w, s in weighted if w]
                return torch.logsumexp(torch.stack(shifted), dim=0)
            return torch.log_softmax(torch.stack([w * s for w, s in weighted]).sum(0), dim=1)

    return Calibrated(classifier).eval()


def _symmetries(x: "torch.Tensor") -> "list[torch.Tensor]":
    """The eight symmetric views of square images, channels first."""
    flipped = [x, x.flip(2), x.flip(3), x.flip((2, 3))]
    return [*flipped, *(view.transpose(2, 3) for view in flipped)]
