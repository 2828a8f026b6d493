"""The head of a Keras model: the layers after its last norm, as pooling and Dense layers."""

from collections.abc import Sequence

from densenet_flax.weights.keras_graph import Call
from densenet_flax.weights.keras_layers import activation, operation
from densenet_flax.weights.weights_file import Head

_MEAN_POOLING = "this package's heads begin with global average pooling"


class _HeadError(Exception):
    """A layer is not one of ours; the message says why."""


def read_head(
    calls: Sequence[Call], *, is_positive: bool, map_size: tuple[int, int] | None
) -> Head[Call]:
    """Reads a head.

    Args:
      calls: the layers from the last feature maps on, one behind the other.
      is_positive: whether a ReLU was the last layer before them.
      map_size: (height, width) of the feature maps, if the model takes one size of images.
    """
    head = _Head(is_positive, map_size)
    try:
        for call in calls:
            head.add(call)
        return head.finish()
    except _HeadError as error:
        return Head(tuple(call for call, _ in head.dense), fault=str(error))


class _Head:
    """Follows a head layer by layer."""

    def __init__(self, is_positive: bool, map_size: tuple[int, int] | None):
        self.dense: list[tuple[Call, str]] = []  # and its activation
        self._is_positive = is_positive
        self._shape = "maps"  # or 'pooled', maps of one position, or 'vector'
        self._map_size = map_size
        self._units = 0

    def add(self, call: Call) -> None:
        """Adds a layer; _HeadError if ours has no such layer at this place."""
        name = operation(call)
        if call.config.get("data_format") == "channels_first":
            raise _HeadError(
                f"layer {call.name!r} is a {name} of channels_first, unlike the network"
            )
        if name == "Dense":
            self._add_dense(call)
        elif kind := activation(call):
            self._add_activation(call, kind)
        elif name == "GlobalAveragePooling2D" and self._shape == "maps":
            self._shape = "pooled" if call.config.get("keepdims") else "vector"
        elif name == "AveragePooling2D" and self._shape == "maps" and self._pools_all(call):
            self._shape = "pooled"
        elif name == "Flatten" and (self._shape != "maps" or self._map_size == (1, 1)):
            self._shape = "vector"
        else:
            advice = _MEAN_POOLING if self._shape == "maps" else "this package's heads have none"
            raise _HeadError(f"layer {call.name!r} is a {name}; {advice}")

    def finish(self) -> Head[Call]:
        """The head; _HeadError if its activations are not those of ours."""
        if not self.dense:
            return Head()
        *hidden, (top, last) = self.dense
        for call, kind in hidden:
            if kind != "relu":
                raise _HeadError(
                    f"hidden layer {call.name!r} has the activation {kind!r}; this package's heads "
                    "have 'relu'"
                )
        if last not in ("softmax", "sigmoid", "linear"):
            raise _HeadError(
                f"layer {top.name!r} has the activation {last!r}; expected softmax, sigmoid or "
                "linear"
            )
        if last == "softmax" and self._units == 1:
            raise _HeadError(
                f"layer {top.name!r} is a softmax of a single output, which is always 1"
            )
        dense = tuple(call for call, _ in self.dense)
        if last == "linear":  # logits, for a loss with from_logits=True
            kind = "softmax" if self._units > 1 else "sigmoid"
            notes = (f"layer {top.name!r} gives logits: {kind} assumed",)
            return Head(dense, activation=kind, notes=notes)
        notes = (f"{last} from the model's configuration",)
        return Head(dense, activation=last, notes=notes)

    def _add_dense(self, call: Call) -> None:
        if self._shape != "vector":
            raise _HeadError(f"layer {call.name!r} is a Dense of feature maps; {_MEAN_POOLING}")
        kind = call.config.get("activation") or "linear"
        self.dense.append((call, kind if isinstance(kind, str) else str(kind)[:60]))
        self._units = int(call.config.get("units", 0))
        self._is_positive = kind == "relu"

    def _add_activation(self, call: Call, kind: str) -> None:
        if kind == "relu" and self._is_positive:  # changes nothing
            return
        if not self.dense or self.dense[-1][1] != "linear":
            raise _HeadError(
                f"layer {call.name!r} is a {kind} "
                + ("before pooling" if self._shape == "maps" else "after another activation")
                + ", where this package's heads have none"
            )
        self.dense[-1] = (self.dense[-1][0], kind)
        self._is_positive = kind == "relu"

    def _pools_all(self, call: Call) -> bool:
        sizes = call.config.get("pool_size")
        return self._map_size is not None and sizes == list(self._map_size)
