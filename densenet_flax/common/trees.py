"""Types of nested data, so that `Any` appears here and not in every signature."""

from collections.abc import Mapping
from typing import Any, TypeAlias

# A tree of arrays in nested containers, as `jax.tree` walks it.
PyTree: TypeAlias = Any

# A network's variables, {'params': …, 'batch_stats': …}: nested dictionaries with Keras's layer
# names as keys and float32 arrays as leaves.
Variables: TypeAlias = Mapping[str, PyTree]

# The content of a JSON document: string keys, and values as `json.loads` returns them.
JsonDict: TypeAlias = dict[str, Any]
