"""A weights file of any kind, opened: its tensors, where each belongs, and what they mean."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.weights.info import WeightsInfo
from densenet_flax.weights.layout import Layout, Path, Shape, nest, recognise

_MAX_EXPANSION = 20  # weights hardly compress; what unpacks to more than this is no weights file
_ROOM = 1 << 24


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the file, not read yet.

    Attributes:
      name: as the file spells it.
      shape: in our layout (HWIO kernels).
      path: where it belongs in our variables; None if it is nothing that a DenseNet has.
      read: reads it, in our layout, as any float type.
      in_head: whether it comes after the backbone.
    """

    name: str
    shape: Shape
    path: Path | None
    read: Callable[[], np.ndarray]
    in_head: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened weights file.

    Attributes:
      path: the file.
      form: what it is, in words.
      tensors: all that it holds, but for optimizer state and the like.
      meaning: attributes of `WeightsInfo` that the file states or its kind implies.
      reasons: why, for `inspect`, in words.
    """

    path: FilePath
    form: str
    tensors: Sequence[Tensor]
    meaning: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reasons: Sequence[str] = ()

    @property
    def shapes(self) -> dict[Path, Shape]:
        """Shapes of the tensors that were recognised."""
        return {tensor.path: tensor.shape for tensor in self.tensors if tensor.path}

    def layout(self) -> Layout:
        """The network that the file holds.

        Raises:
          InputError: it holds none.
        """
        layout = recognise(self.shapes)
        if layout is None:
            names = ", ".join(tensor.name for tensor in self.tensors[:3]) or "no tensors at all"
            raise InputError(
                f"{self.path}: not the weights of a DenseNet ({self.form} with {names}"
                f"{', …' if len(self.tensors) > 3 else ''}); expected DenseNet121, 161, 169 or 201"
            )
        return layout

    def info(self, layout: Layout, sha256: str) -> WeightsInfo:
        """What the file means, given its layout."""
        meaning = {"source": self.path.name, "sha256": sha256, **self.meaning}
        if not layout.num_classes:
            meaning = {**meaning, "class_names": (), "activation": "softmax"}
        with reading(self.path):
            return WeightsInfo.from_layout(layout, **meaning)

    def read(self, layout: Layout, *, ignore_head: bool = False) -> dict[str, Any]:
        """Reads the variables of `layout`, using every tensor of the file exactly once.

        Raises:
          InputError: tensors are missing, left over, of another shape, or not finite.
        """
        if ignore_head:
            layout = layout.backbone
        tensors = [t for t in self.tensors if not (ignore_head and t.in_head)]
        expected = layout.tensors()
        self._check(tensors, expected, layout)
        by_path = {tensor.path: tensor for tensor in tensors}
        flat = {path: self._values(by_path[path]) for path in expected}
        for path, values in flat.items():
            if path[0] == "batch_stats" and path[-1] == "var" and values.min() < 0:
                raise InputError(
                    f"{self.path}: {by_path[path].name} is a variance and holds negative numbers; "
                    "the file is damaged, get it again"
                )
        return {"params": {}, "batch_stats": {}, **nest(flat)}

    def _check(self, tensors: Sequence[Tensor], expected: Mapping[Path, Shape], layout: Layout):
        unknown, shapes = [], []
        seen: dict[Path, str] = {}
        for tensor in tensors:
            path = tensor.path
            if path is None or path not in expected:
                unknown.append(tensor.name)
            elif path in seen:
                unknown.append(f"{tensor.name} (the same as {seen[path]})")
            else:
                seen[path] = tensor.name
                if tensor.shape != expected[path]:
                    shapes.append(f"{tensor.name} {tensor.shape} instead of {expected[path]}")
        missing = ["/".join(path[1:]) for path in expected if path not in seen]
        faults = [
            _listed(kind, names)
            for kind, names in (
                ("missing", missing),
                ("unexpected", unknown),
                ("of another shape", shapes),
            )
            if names
        ]
        if not faults:
            return
        found = recognise(self.shapes)
        advice = "get a complete file"
        if layout.network == "densenet" and found == layout:
            advice = "give DenseNet121, 161, 169 or 201"
        elif found and found.backbone != layout.backbone:
            advice = f"the file looks like {found.describe()}"
        elif found and found != layout:
            advice = f"the file holds {found.describe()}; build that model, or ignore the head"
        raise InputError(f"{self.path}: not {layout.describe()}: {'; '.join(faults)}; {advice}")

    def _values(self, tensor: Tensor) -> np.ndarray:
        with reading(self.path, tensor.name), np.errstate(over="ignore"):
            values = np.ascontiguousarray(tensor.read(), dtype=np.float32)
        if values.shape != tensor.shape:
            raise InputError(
                f"{self.path}: {tensor.name} has shape {values.shape}, its header says "
                f"{tensor.shape}; the file is damaged, get it again"
            )
        if not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise InputError(
                f"{self.path}: {tensor.name} holds {count} values that are NaN or infinite in "
                "float32; the file is damaged or training diverged, take another"
            )
        return values


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], what: str = "") -> Iterator[None]:
    """Turns whatever a library raises while it reads `path` into an `InputError` of one line."""
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {what and what + ': '}{error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it; mend its permissions") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: a directory; give a weights file") from error
    except MemoryError as error:
        raise InputError(f"{path}: {what or 'the file'} does not fit into memory") from error
    except Exception as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()[:200] or type(error).__name__
        where = f"{what}: " if what else ""
        raise InputError(
            f"{path}: {where}cannot be read ({reason}); the file is damaged or cut short, "
            "get it again"
        ) from error


def check_expansion(path: FilePath, stored: int, declared: int) -> None:
    """Refuses a file that claims to hold far more than it weighs."""
    if declared > _MAX_EXPANSION * stored + _ROOM:
        raise InputError(
            f"{path}: {stored:,} bytes that unpack to {declared:,}; no weights file does that, "
            "do not trust where it came from"
        )


def stated(path: FilePath, text: str) -> dict[str, Any]:
    """Attributes of `WeightsInfo`, but for the layout, from the JSON that our files keep."""
    with reading(path, "what the file says of itself"):
        return meaning_of(WeightsInfo.from_dict(json.loads(text)))


def meaning_of(info: WeightsInfo) -> dict[str, Any]:
    """What `info` says beyond shapes."""
    shape = {field.name for field in dataclasses.fields(Layout)}
    return {k: v for k, v in vars(info).items() if k not in shape and k != "network"}


def file_hash(path: FilePath, algorithm: str = "sha256") -> str:
    """Hexadecimal hash of a file."""
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _listed(kind: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} {kind} ({shown}{', …' if len(names) > 3 else ''})"
