"""Which tensors of a PyTorch file are a DenseNet, which of several, and what the others are.

A checkpoint may hold a network under any key or prefix, an average of it beside it, and tensors
that are no part of it: class weights of a loss, states of metrics, counters.
"""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from densenet_flax.common.errors import InputError

Tensor = TypeVar("Tensor")

# What comes before depends on the wrapper: DistributedDataParallel adds `module.`, torch.compile
# `_orig_mod.`, others `model.`.
BACKBONE_NAME = re.compile(
    r"(?P<prefix>(?:\w+\.)*?)(?:features\.)?(?:"
    r"(?P<stem>conv|norm)0|(?P<last>norm)5|"
    r"transition(?P<pool>[1-9])\.(?P<pool_layer>conv|norm)|"
    # MONAI has `layers.` here; torchvision before 0.3 wrote `norm.1` where today's says `norm1`.
    r"denseblock(?P<block>[1-9])\.denselayer(?P<dense_layer>[1-9]\d{0,2})\.(?:layers\.)?"
    r"(?P<layer>conv|norm)\.?(?P<number>[12])"
    r")\.(?P<variable>weight|bias|running_mean|running_var)"
)
# Words in the names of averages: `state_dict_ema`, `model_ema`, `swa_model`, …
_AVERAGES = {"ema", "swa", "avg", "average", "averaged", "polyak"}
# Tensors that are known to be no part of a network, by what they are.
BATCH_COUNTERS = "batch counters"  # in every file, so that nobody needs to be told
_COMPANIONS = {
    BATCH_COUNTERS: re.compile(r"(.*\.)?num_batches_tracked"),
    "counter of an average": re.compile(r"(.*\.)?(n_averaged|num_updates|decay)"),
    "weights of a loss": re.compile(
        r"(.*\.)?(criterion|criteria|\w*loss\w*)\..*|(.*\.)?(class_weights?|pos_weights?)"
    ),
    "states of metrics": re.compile(
        r"(.*\.)?\w*(metric|acc|auroc|auc|f1|precision|recall|specificity|confusion|kappa|iou|dice)"
        r"\w*\.(.*\.)?(tp|fp|tn|fn|confmat|total|correct|value|mean_value|sum_value|weight|preds|"
        r"target|measures|sum_squared_error|count)",
        re.IGNORECASE,
    ),
}
_MAX_DEPTH = 4  # a trainer's checkpoint in a framework's


@dataclasses.dataclass(frozen=True)
class TorchNetwork(Generic[Tensor]):
    """A DenseNet among the tensors of a file.

    Attributes:
      label: what `--which` calls it: keys of the checkpoint, and a prefix if they hold several.
      tensors: its own and those that belong to no network, as the file orders and spells them.
      companions: names of tensors that are known to be no part of it, by what they are.
      notes: what was chosen and left out, in words.
      options: of the script that trained it, by name.
    """

    label: str
    tensors: dict[str, Tensor]
    companions: Mapping[str, Sequence[str]]
    notes: tuple[str, ...] = ()
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)


def select_network(content: Mapping[str, object], which: str = "") -> TorchNetwork | None:
    """Finds the network in the content of a file, nested mappings of names to tensors.

    Of several the average is taken, as timm does.

    Args:
      content: a state dict, or a checkpoint that contains some.
      which: label of the one to take.

    Returns:
      The network; None if there is no DenseNet.

    Raises:
      InputError: there are several and nothing says which is meant, or none of this label.
    """
    networks = _find_networks(content)
    if which:
        chosen = next((n for n in networks if n.label == which), None)
        if not chosen:
            labels = ", ".join(n.label for n in networks) or "none"
            raise InputError(f"no network {which!r} in it; it holds: {labels}")
        return chosen
    if not networks:
        return None
    # One that lacks whole kinds of variables, such as an average of the parameters alone, is no
    # network to choose.
    most = max(len(_backbone(n)) for n in networks)
    whole = [n for n in networks if len(_backbone(n)) == most]
    averages = [n for n in whole if _AVERAGES & set(re.split(r"[\W_]+", n.label.lower()))]
    if len(whole) > 1 and len(averages) != 1:
        raise InputError(
            f"holds several networks, {', '.join(n.label for n in whole)}; choose one: --which="
            f"{shlex.quote(whole[0].label)} (read_weights: which={whole[0].label!r})"
        )
    chosen = averages[0] if len(whole) > 1 else whole[0]
    notes = []
    if others := [n.label for n in networks if n is not chosen]:
        kind = "the average " if chosen in averages else ""
        several = f"of several networks {kind}{chosen.label}, not {', '.join(others)}"
        notes.append(f"{several} (--which chooses)")
    # Such as a head that was saved by itself.
    if modules := [key for key, value in content.items() if _is_other_module(value)]:
        notes.append(f"other modules left out ({', '.join(modules)})")
    return dataclasses.replace(chosen, notes=tuple(notes))


def _is_other_module(value: object) -> bool:
    """Whether a value is the state dict of something else than a DenseNet."""
    if not isinstance(value, Mapping):
        return False
    names = [n for n, v in value.items() if isinstance(n, str) and hasattr(v, "shape")]
    is_module = any(re.fullmatch(r"(.*\.)?weight", name) for name in names)
    return is_module and not any(BACKBONE_NAME.fullmatch(name) for name in names)


def _backbone(network: TorchNetwork) -> set[str]:
    return {name for name in network.tensors if BACKBONE_NAME.fullmatch(name)}


def _find_networks(content: Mapping[str, object], keys: tuple[str, ...] = ()) -> list[TorchNetwork]:
    """The networks among the tensors of a mapping and of those in it."""
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and hasattr(v, "shape")}
    prefixes: dict[str, None] = {}  # a set, in order
    for name in tensors:
        if match := BACKBONE_NAME.fullmatch(name):
            prefixes[match["prefix"]] = None
    networks = []
    for prefix in prefixes:
        label = ".".join(keys)
        if len(prefixes) > 1 or not label:
            label = ".".join(part for part in (label, prefix.rstrip(".")) if part)
        own = {n: v for n, v in tensors.items() if _owner(n, prefixes) in (prefix, None)}
        networks.append(_separate(label or "the file itself", own))
    if len(keys) < _MAX_DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                networks += _find_networks(value, (*keys, key))
    return networks


def _owner(name: str, prefixes: Mapping[str, None]) -> str | None:
    """The prefix of the network that a tensor belongs to; None if it is under none of them."""
    if match := BACKBONE_NAME.fullmatch(name):
        return match["prefix"]
    owners = [prefix for prefix in prefixes if name.startswith(prefix)]
    return max(owners, key=len, default=None)


def _separate(label: str, tensors: Mapping[str, Tensor]) -> TorchNetwork[Tensor]:
    """Separates companions from the other tensors of a network."""
    # A layer may be called `f1`, and a loss may contain the head: what has a kernel is never left
    # out, nor is its bias.
    layers = {
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(getattr(tensor, "shape", ())) > 1
    }
    kept: dict[str, Tensor] = {}
    companions: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        kind = next((k for k, known in _COMPANIONS.items() if known.fullmatch(name)), "")
        if kind and name.rpartition(".")[0] not in layers:
            companions.setdefault(kind, []).append(name)
        else:
            kept[name] = tensor
    return TorchNetwork(label, kept, companions)
