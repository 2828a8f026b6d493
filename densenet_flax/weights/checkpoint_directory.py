"""The network of a checkpoint that our training wrote, as a weights file."""

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from densenet_flax.common.errors import InputError
from densenet_flax.storage.trained_model import read_model
from densenet_flax.weights.info import InfoFields, WeightsInfo
from densenet_flax.weights.layout import infer_layout
from densenet_flax.weights.safe_reading import reading
from densenet_flax.weights.weights_file import StoredTensor, WeightsFile


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[WeightsFile]:
    """Opens a work directory, its folder of checkpoints, or one of these."""
    variables, network = read_model(path)
    arrays = flatten_dict(variables)
    shapes = {p: tuple(np.shape(value)) for p, value in arrays.items()}
    layout = infer_layout(shapes)
    if layout is None:
        raise InputError(f"{path}: a checkpoint of something else than a DenseNet")
    with reading(path, "metadata"):
        # The shapes say which network it is: a run may name one of its own making.
        named = {**network, **dataclasses.asdict(layout), "network": layout.network}
        info = WeightsInfo.from_dict(named)
    tensors = [
        StoredTensor("/".join(p), shapes[p], p, partial(np.asarray, value), in_head=p[1] == "head")
        for p, value in arrays.items()
    ]
    metadata: InfoFields = {**info.fields, "source": info.source or path.name}
    evidence = ["stated in the checkpoint"]
    yield WeightsFile(path, "densenet_flax checkpoint", "", tensors, metadata, evidence)
