"""An open weights file of any format: its tensors, the variables they are, and what it says."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar, Unpack

import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import PyTree
from densenet_flax.weights.info import InfoFields, WeightsInfo
from densenet_flax.weights.layout import Layout, Shape, VariablePath, infer_layout
from densenet_flax.weights.safe_reading import damaged, file_hash, reading

Layer = TypeVar("Layer")  # its name, or more

_STEM_KERNEL = ("params", "conv1", "conv", "kernel")
# Of PyTorch's pruning, and of its norms of weights in both of their forms.
_PARAMETRIZED = re.compile(r"weight_(orig|mask|g|v|u)$|\.parametrizations\.")

# Reads one tensor, in our layout, as any float type.
ReadTensor: TypeAlias = Callable[[], Float[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file, not read yet.

    Attributes:
      name: as the file spells it.
      shape: in our layout (HWIO kernels).
      path: of the variable that it is; None if a DenseNet has no such variable.
      read: reads it.
      in_head: whether it comes after the backbone.
    """

    name: str
    shape: Shape
    path: VariablePath | None
    read: ReadTensor
    in_head: bool = False


@dataclasses.dataclass(frozen=True)
class Head(Generic[Layer]):
    """A head, as a file describes it.

    Attributes:
      layers: its Dense or Linear layers in the order in which they are applied.
      fault: why it computes something that ours does not, or may do so; '' if it is read exactly.
      activation: of the probabilities; None if nothing tells.
      notes: what was read, recognized or assumed, in words.
    """

    layers: Sequence[Layer] = ()
    fault: str = ""
    activation: str | None = "softmax"
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """An open weights file.

    Attributes:
      path: the file.
      format: in words, such as 'Keras .weights.h5'.
      framework: that can run the file, 'Keras' or 'PyTorch'; '' if it is only ours.
      tensors: all that it holds, without optimizer state and the like.
      metadata: what the file states beyond its shapes, or its kind implies; `epsilon` at least.
      evidence: where the metadata come from, in words, for `inspect`.
      companions: names of what the file holds besides a network and is left out, by what it is.
      head_fault: why the head cannot be read exactly; '' if it can.
      pixels_fault: why pixels cannot be preprocessed as is stated; '' if they can.
      is_activation_known: whether the file or its names tell the activation of a head.
      which: the network of several that was chosen, as `open_weights` takes it.
    """

    path: Path
    format: str
    framework: str
    tensors: Sequence[StoredTensor]
    metadata: InfoFields
    evidence: Sequence[str] = ()
    companions: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    head_fault: str = ""
    pixels_fault: str = ""
    is_activation_known: bool = True
    which: str = ""

    def explain(self) -> tuple[str, ...]:
        """The evidence, and what was left out."""
        left_out = [f"{kind} left out ({_list(names)})" for kind, names in self.companions.items()]
        return (*self.evidence, *left_out)

    @property
    def shapes(self) -> dict[VariablePath, Shape]:
        """Shapes of the tensors that are variables of a DenseNet."""
        return {tensor.path: tensor.shape for tensor in self.tensors if tensor.path}

    def layout(self) -> Layout:
        """The network that the file holds, inferred from the shapes; InputError if none."""
        layout = infer_layout(self.shapes)
        if layout is None:
            names = _list([tensor.name for tensor in self.tensors]) or "no tensors at all"
            fault = "not the weights of a DenseNet"
            if any(len(tensor.shape) == 5 for tensor in self.tensors):
                fault = "weights of a network of volumes, whose kernels have three dimensions"
            elif self.shapes and not any(path[-1] == "scale" for path in self.shapes):
                fault = "a DenseNet without BatchNorm"
            raise InputError(
                f"{self.path}: {fault} ({self.format} with {names}); "
                "expected DenseNet121, 161, 169 or 201"
            )
        return layout

    def info(self, layout: Layout, **overrides: Unpack[InfoFields]) -> WeightsInfo:
        """The metadata as `WeightsInfo`, for weights of this layout.

        Raises:
          InputError: they cannot be used, or nothing tells the activation of the head.
        """
        if self.pixels_fault and "preprocessing" not in overrides:
            raise InputError(f"{self.path}: {self.pixels_fault}")
        if layout.num_classes and not (self.is_activation_known or "activation" in overrides):
            raise InputError(
                f"{self.path}: nothing tells what turns its {layout.num_classes} outputs into "
                "probabilities; say so with convert … --activation=softmax, sigmoid or none "
                "(read_weights: activation=…)"
            )
        sha256 = "" if self.path.is_dir() else file_hash(self.path)
        # A file of ours states the source and hash of the file that it was converted from.
        fields: InfoFields = {"source": self.path.name, "sha256": sha256, **self.metadata}
        # A head that was left out has neither classes nor an activation.
        if not layout.num_classes:
            fields |= {"class_names": (), "activation": "softmax"}
        with reading(self.path):
            return dataclasses.replace(WeightsInfo.from_layout(layout, **fields), **overrides)

    def read(self, layout: Layout, *, ignore_head: bool = False) -> dict[str, PyTree]:
        """Reads the variables of `layout`, using every tensor of the file exactly once.

        Raises:
          InputError: tensors are missing, left over, of another shape, or not finite; or the head
            computes something that ours does not.
        """
        if ignore_head:
            layout = layout.backbone
        if self.head_fault and not ignore_head:
            # What is wrong with the backbone comes first.
            self._check([t for t in self.tensors if not t.in_head], layout.backbone)
            raise InputError(
                f"{self.path}: {self.head_fault}; its backbone alone can be used (ignore_head=True "
                "of load_weights, or as config.model.weights)"
            )
        tensors = [t for t in self.tensors if not (ignore_head and t.in_head)]
        self._check(tensors, layout)
        by_path = {tensor.path: tensor for tensor in tensors}
        flat = {path: self._values(by_path[path]) for path in layout.tensors()}
        return {"params": {}, "batch_stats": {}, **unflatten_dict(flat)}

    def _check(self, tensors: Sequence[StoredTensor], layout: Layout) -> None:
        """Raises one error that lists everything in which the file differs from the layout."""
        # Collected first: all faults in one message show what kind of file it really is.
        unexpected, misshaped = [], []
        names: dict[VariablePath, str] = {}
        expected = layout.tensors()
        for tensor in tensors:
            path = tensor.path
            if path is None or path not in expected:
                unexpected.append(tensor.name)
            elif path in names:  # in two spellings
                unexpected.append(f"{tensor.name} (the same as {names[path]})")
            else:
                names[path] = tensor.name
                if tensor.shape != expected[path]:
                    misshaped.append(f"{tensor.name} {tensor.shape} instead of {expected[path]}")
        missing = ["/".join(path[1:]) for path in expected if path not in names]
        kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
        faults = [f"{len(v)} {kind} ({_list(v)})" for kind, v in kinds.items() if v]
        if faults:
            advice = self._advice(layout, kinds)
            raise InputError(f"{self.path}: not {layout.describe()}: {'; '.join(faults)}; {advice}")

    def _advice(self, layout: Layout, kinds: Mapping[str, Sequence[str]]) -> str:
        inferred = infer_layout(self.shapes)
        stem_shape, expected = self.shapes.get(_STEM_KERNEL, ()), layout.tensors()[_STEM_KERNEL]
        if any(_PARAMETRIZED.search(name) for name in kinds["unexpected"]):
            return (
                "its layers keep their weights in parts, for pruning or a norm of weights; save "
                "it after torch.nn.utils.prune.remove or parametrize.remove_parametrizations"
            )
        if inferred == layout and not kinds["missing"] and not kinds["of another shape"]:
            # The network is whole: leaving out what may belong to it would change what it computes.
            return (
                "every variable of the network is there, and the rest is surplus that this package "
                "does not know; if it is no part of the network, save its state_dict or weights "
                "without it"
            )
        if len(stem_shape) == 4 and stem_shape[:3] != expected[:3]:
            height, width, channels, _ = stem_shape
            return (
                f"its first convolution is {height}×{width} of {channels} channels, and this "
                "package's is 7×7 of red, green and blue"
            )
        if not any(path[0] == "batch_stats" for path in self.shapes):
            return (
                "it has no running statistics of BatchNorm: either its network has other norms, or "
                "only the parameters were saved; save the whole state_dict or weights"
            )
        if layout.network == "densenet" and inferred == layout:
            return "give DenseNet121, 161, 169 or 201"
        if inferred and inferred.backbone != layout.backbone:
            return f"the file looks like {inferred.describe()}"
        if inferred and inferred != layout:
            return f"the file holds {inferred.describe()}; build that model, or ignore the head"
        return "get a complete file"

    def _values(self, tensor: StoredTensor) -> Float[np.ndarray, "..."]:
        # What float32 cannot hold becomes infinite, which is reported below.
        with reading(self.path, tensor.name), np.errstate(over="ignore"):
            values = np.ascontiguousarray(tensor.read(), dtype=np.float32)
        if values.shape != tensor.shape:
            fault = f"has shape {values.shape}, its header says {tensor.shape}"
            raise damaged(self.path, f"{tensor.name} {fault}")
        if not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise InputError(
                f"{self.path}: {tensor.name} holds {count} values that are NaN or infinite in "
                "float32; the file is damaged or training diverged, take another"
            )
        if tensor.path and tensor.path[-1] == "var" and values.min() < 0:
            raise damaged(self.path, f"{tensor.name} is a variance and holds negative numbers")
        return values


def zero_biases(tensors: Sequence[StoredTensor]) -> list[StoredTensor]:
    """Biases of the head's layers that have none: zeros."""
    paths = {tensor.path for tensor in tensors}
    zeros = []
    for tensor in tensors:
        if tensor.in_head and tensor.path and tensor.path[-1] == "kernel":
            path = (*tensor.path[:-1], "bias")
            if path not in paths:
                values = np.zeros(tensor.shape[-1:], np.float32)
                name = f"{tensor.name} (no bias: zeros)"
                zeros.append(StoredTensor(name, values.shape, path, values.copy, in_head=True))
    return zeros


def stored_metadata(path: Path, text: str) -> InfoFields:
    """The metadata of a file that this package wrote, from the JSON in it."""
    with reading(path, "metadata"):
        return WeightsInfo.from_dict(json.loads(text)).fields


def _list(names: Sequence[str]) -> str:
    """'a, b, c, …'."""
    return ", ".join([*names[:3], "…"] if len(names) > 3 else names)
