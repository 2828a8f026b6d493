"""Several trained networks as one classifier: of several seeds, folds or architectures.

A folder holds it: the weights file of each member and `ensemble.json`. The networks see the same
prepared images; `combine` makes one probability of theirs.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.inference.classifier import (
    Classifier,
    ForwardOutput,
    ImageBatch,
)
from densenet_flax.storage.json_files import write_json_object
from densenet_flax.weights.inference_settings import StoredOperatingPoint

FILE = "ensemble.json"
COMBINE = ("probabilities", "logits")
ADVICE = "make the ensemble again with main.py --mode=ensemble"
# Of a class; with fewer, fitted weights are those of a few patients.
MIN_PATIENTS_TO_STACK = 10
Size: TypeAlias = tuple[float, float]  # (height, width)
_TINY = 1e-30  # the log of a probability that underflowed


@dataclasses.dataclass(frozen=True)
class Combination:
    """How the members' probabilities become one.

    Attributes:
      combine: 'probabilities', their weighted mean; or 'logits', the softmax of the weighted mean
        of their logarithms.
      weights: of each member; they add up to 1.
    """

    combine: str
    weights: tuple[float, ...]

    def __call__(self, probabilities: Sequence[Float[np.ndarray, "N K"]]) -> np.ndarray:
        """Combines the members' probabilities, float64 [N, K] of each."""
        weights = np.array(self.weights)[:, None, None]
        if self.combine == "probabilities":
            return np.sum(weights * np.stack(probabilities), axis=0)
        scores = np.log(np.maximum(np.stack(probabilities), _TINY))
        return special.softmax(np.sum(weights * scores, axis=0), axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class _EnsembleOutput(ForwardOutput):
    """The output for a batch, and that of each member."""

    members: tuple[ForwardOutput, ...]


class Ensemble(Classifier):
    """Several classifiers used like one; `load_classifier` makes it of an ensemble's folder.

    Features are those of all members, one after the other, and saliency maps are their mean.

    Attributes:
      members: the classifiers.
      combination: how their probabilities become one.
    """

    def __init__(
        self,
        members: Mapping[str, Classifier],
        combination: Combination,
        point: StoredOperatingPoint | None,
    ):
        """Puts classifiers together.

        Args:
          members: by names for messages.
          combination: with a weight for each of them.
          point: threshold and temperature of the combined probability.

        Raises:
          InputError: they do not have the same classes and preparation of images, or a network of
            independent classes is among them.
        """
        (name, first), *others = members.items()
        for other, member in others:
            for what, a, b in (
                ("classes", first.class_names, member.class_names),
                ("image size", first.image_size, member.image_size),
                ("stain normalization", first.info.inference.stain, member.info.inference.stain),
                ("bits", first.info.inference.bits, member.info.inference.bits),
                ("test-time augmentation", first.tta, member.tta),
            ):
                if a != b:
                    raise InputError(
                        f"ensemble: {name} and {other} differ in their {what}, {a} and {b}; "
                        "members see the same images and answer the same question"
                    )
        if any(member.is_multilabel for member in members.values()):
            raise InputError(
                "ensemble: a member decides each class by itself (several sigmoid outputs); "
                "members have one answer for each image"
            )
        self.members, self.combination = tuple(members.values()), combination
        field_um, mpp = _field_of(members)
        settings = dataclasses.replace(
            first.info.inference, operating_point=point, field_um=field_um, mpp=mpp
        )
        self._set_info(dataclasses.replace(first.info, inference=settings), first.image_size)
        self.tta = first.tta
        self.images_per_batch = min(member.images_per_batch for member in self.members)
        self.network, self._normalize = first.network, first._normalize
        self.variables = {f"member {i}": m.variables for i, m in enumerate(self.members, start=1)}

    @property
    def num_features(self) -> int:
        """Number of pooled features of all members."""
        return sum(member.num_features for member in self.members)

    def describe(self) -> JsonDict:
        """What decides the outputs, apart from the variables."""
        return {
            **super().describe(),
            **dataclasses.asdict(self.combination),
            "members": [member.describe() for member in self.members],
        }

    def count_features(self, unit: str) -> int:
        """The number of features of a unit of all members; InputError if one has no such unit."""
        return sum(member.count_features(unit) for member in self.members)

    def begin_embed(self, batch: ImageBatch, unit: str) -> Callable[[], Float[np.ndarray, "N C"]]:
        """Begins to compute the features of a unit of all members."""
        waiting = [member.begin_embed(batch, unit) for member in self.members]
        return lambda: np.concatenate([wait() for wait in waiting], axis=1)

    def begin_forward(
        self, batch: ImageBatch, *, unit: str = "norm"
    ) -> Callable[[], ForwardOutput]:
        """Begins what `forward` does; the function that it returns waits for the output."""
        waiting = [member.begin_forward(batch, unit=unit) for member in self.members]

        def output() -> ForwardOutput:
            outputs = tuple(wait() for wait in waiting)
            return _EnsembleOutput(
                self.combination([output.probability for output in outputs]),
                np.concatenate([output.features for output in outputs], axis=1),
                outputs[0].norm_input,
                outputs,
            )

        return output

    def explain_batch(
        self,
        batch: ImageBatch,
        label: Int[np.ndarray, "N"],
        output: ForwardOutput,
        *,
        unit: str,
        method: str = "cam",
    ) -> Float[np.ndarray, "N h w"]:
        """Computes the mean of the members' maps of prepared images."""
        assert isinstance(output, _EnsembleOutput)
        maps = [
            member.explain_batch(batch, label, own, unit=unit, method=method)
            for member, own in zip(self.members, output.members, strict=True)
        ]
        return np.mean(maps, axis=0)


def _field_of(members: Mapping[str, Classifier]) -> tuple[Size | None, Size | None]:
    """What the members' tiles show, and their resolution, as those state it that know it."""
    known = {
        name: (member.info.inference.field_um, member.info.inference.mpp)
        for name, member in members.items()
        if member.info.inference.field_um
    }
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{field} µm of {name}" for name, (field, _) in known.items())
        raise InputError(
            f"ensemble: members were trained on tiles that show fields of different sizes: {listed}"
        )
    return next(iter(known.values()), (None, None))


def read_members(content: JsonDict) -> tuple[dict[str, str], Combination]:
    """SHA-256 of each member's file, by its name, and their combination."""
    rows, combine = content.get("members"), content.get("combine")
    if combine not in COMBINE:
        raise ValueError(f"combine={combine!r:.50}: expected one of {', '.join(COMBINE)}; {ADVICE}")
    is_list = isinstance(rows, list) and len(rows) > 1 and all(isinstance(r, dict) for r in rows)
    if not isinstance(rows, list) or not is_list:
        raise ValueError(f"members={rows!r:.50}: expected two or more; {ADVICE}")
    digests, weights = {}, []
    for row in rows:
        name, weight = row.get("file"), row.get("weight")
        # Files of other folders are none of ours to open.
        if not isinstance(name, str) or Path(name).name != name or Path(name).suffix == "":
            raise ValueError(f"file={name!r:.50}: expected a weights file in the folder; {ADVICE}")
        if not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise ValueError(f"weight={weight!r:.50}: expected a number from 0 to 1; {ADVICE}")
        digests[name] = row.get("sha256")
        weights.append(float(weight))
    if len(digests) < len(rows) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"members: expected different files and weights of sum 1; {ADVICE}")
    return digests, Combination(combine, tuple(weights))


def write_ensemble(
    folder: Path,
    files: Mapping[str, str],
    combination: Combination,
    point: StoredOperatingPoint | None,
) -> None:
    """Writes `ensemble.json` beside the members' weights files.

    Args:
      folder: that holds the files.
      files: where each is from, by its name.
      combination: with a weight for each.
      point: threshold and temperature; None for 0.5 and 1.
    """
    members = [
        {"file": name, "from": source, "weight": weight, "sha256": file_sha256(folder / name)}
        for (name, source), weight in zip(files.items(), combination.weights, strict=True)
    ]
    content: JsonDict = {"combine": combination.combine, "members": members}
    if point:
        content["operating_point"] = point.to_dict()
    write_json_object(folder / FILE, content, indent=2)


def stacking_weights(
    probabilities: Sequence[Float[np.ndarray, "N K"]],
    label: Int[np.ndarray, " N"],
    patient: np.ndarray,
    class_names: Sequence[str],
) -> tuple[float, ...]:
    """Fits the weights of a mean of logits on validation images; each patient counts the same.

    They minimize the log-loss, are not negative and add up to 1 (stacked generalization: Wolpert,
    Neural Networks 5(2), 1992; Breiman, Machine Learning 24, 1996, on why not negative). What their
    sum would say is left to the temperature.

    Raises:
      InputError: a class has too few patients.
    """
    classes = len(class_names)
    for k, name in enumerate(class_names):
        patients = len(np.unique(patient[label == k]))
        if patients < MIN_PATIENTS_TO_STACK:
            raise InputError(
                f"--combine=stacking: there are {patients} {name} validation patients, and weights "
                f"need at least {MIN_PATIENTS_TO_STACK} of each class; choose 'probabilities' or "
                "'logits', which fit nothing"
            )
    _, index, images = np.unique(patient, return_inverse=True, return_counts=True)
    share = 1 / images[index]
    scores = np.log(np.maximum(np.stack(probabilities), _TINY))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        log_probability = special.log_softmax(np.tensordot(weights, scores, 1), axis=1)
        residual = np.exp(log_probability) - np.eye(classes)[label]
        value = -np.sum(share * log_probability[np.arange(len(label)), label])
        slope = np.einsum("mnk,nk,n->m", scores, residual, share)
        return value / share.sum(), slope / share.sum()

    start = np.full(len(scores), 1 / len(scores))
    bounds = [(0, None)] * len(scores)
    fitted = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    total = fitted.sum()
    return tuple((fitted / total if total > 0 else start).tolist())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
