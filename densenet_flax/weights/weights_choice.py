"""Which of the files of a repository or a folder holds the weights."""

import re
from collections.abc import Iterable

from densenet_flax.common.errors import InputError

# In the order in which they are looked for; of each kind the names that frameworks give, then any.
_KINDS = (
    (("model.safetensors",), (".safetensors",)),
    (("model.weights.h5", "model.keras"), (".keras", ".h5")),
    (
        ("pytorch_model.bin", "pytorch_model.pth", "model.pth"),
        (".pth", ".pt", ".bin", ".ckpt", ".pth.tar"),
    ),
)
WEIGHTS_SUFFIXES = tuple(suffix for _, suffixes in _KINDS for suffix in suffixes)
_PART = re.compile(r".*-\d{5}-of-\d{5}\..*")
_LISTED = 8


def choose_weights(names: Iterable[str]) -> str:
    """The file of weights among the files of a folder, which are not those of folders in it.

    A `.safetensors` file comes before those of Keras, and these before PyTorch's, which are
    pickles; of one kind `model.safetensors` and the like before any other name.

    Raises:
      InputError: there is none, or several and nothing says which; the message has no subject.
    """
    files = sorted(name for name in names if "/" not in name)
    for preferred, suffixes in _KINDS:
        matching = [name for name in files if name.endswith(suffixes)]
        parts = [name for name in matching if _PART.fullmatch(name)]
        candidates = [name for name in matching if name not in parts]
        chosen = [name for name in preferred if name in candidates] or candidates
        if len(chosen) == 1 or chosen[:1] == list(preferred[:1]):
            return chosen[0]
        if chosen:
            # A collection of many networks: those that may be meant come first.
            chosen.sort(key=lambda name: "densenet" not in name.lower())
            more = ", …" if len(chosen) > _LISTED else ""
            raise InputError(f"holds several weights files: {', '.join(chosen[:_LISTED])}{more}")
        if parts:
            raise InputError(
                f"its weights are in several parts ({parts[0]}, …), which no DenseNet's are"
            )
    listed = ", ".join(files[:_LISTED]) or "no files"
    raise InputError(
        f"holds no weights file that this package reads ({listed}); expected one that ends in "
        f"{', '.join(WEIGHTS_SUFFIXES)}"
    )
