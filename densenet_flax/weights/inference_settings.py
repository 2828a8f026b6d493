"""How to use a trained network on new images: what its training and evaluation settled."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.common.micrometers import FIELD_RANGE, MPP_RANGE, are_within
from densenet_flax.common.patterns import MAX_LENGTH, pattern_fault
from densenet_flax.common.settings import Settings, between, choice, setting
from densenet_flax.common.trees import JsonDict

DTYPES = ("float32", "bfloat16")

# Pixels; far beyond any image that a DenseNet was trained on, and still within memory.
MAX_IMAGE_SIZE = 4096
# Means are at most 255; far larger numbers overflow inside the methods.
_MAX_STAIN_SETTING = 1e6
_MAX_KNOTS = 100_000


def _increase(knots: tuple[tuple[float, float], ...]) -> bool:
    """Whether both columns are probabilities and neither decreases."""
    flat = [value for knot in knots for value in knot]
    in_order = all(a <= b for a, b in zip(flat, flat[2:], strict=False))
    return in_order and all(0 <= value <= 1 for value in flat)


@dataclasses.dataclass(frozen=True)
class StoredOperatingPoint(Settings):
    """How the evaluation of a run turned probabilities into decisions.

    Attributes:
      threshold: positive from this probability on; None with more than two classes, where the
        likeliest class is the decision.
      temperature: divides the logits for calibrated probabilities.
      rule: how the threshold was chosen.
      chosen_on: the images it was chosen on.
      notes: what could not be chosen, and why.
      tta: whether predictions were averaged over the symmetries of the image.
      method: how probabilities are calibrated.
      shift: of Platt scaling, added to the divided log-odds.
      knots: of isotonic regression, pairs of probability and calibrated probability.
      step: of the checkpoint that was evaluated.
      extra: keys of a later version.
    """

    threshold: float | None = setting(
        None, "a number from 0 to 1, or null", lambda value: value is None or 0 <= value <= 1
    )
    # Temperatures are fitted between 0.05 and 20; far beyond that, probabilities overflow.
    temperature: float = between(1e-3, 1e3, default=1.0)
    rule: str = "fixed"
    chosen_on: str = ""
    notes: tuple[str, ...] = ()
    method: str = choice("temperature", ("temperature", "platt", "isotonic"))
    shift: float = between(-1e3, 1e3, default=0.0)
    knots: tuple[tuple[float, float], ...] = setting(
        (),
        f"at most {_MAX_KNOTS} pairs of probabilities in increasing order",
        lambda knots: len(knots) <= _MAX_KNOTS and _increase(knots),
    )
    tta: bool = False
    step: int | None = setting(
        None, "a whole number from 0, or null", lambda value: value is None or value >= 0
    )
    extra: JsonDict = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StoredOperatingPoint":
        """The inverse of `to_dict`; InputError if a value is missing or cannot be used."""
        path = "extra.operating_point"
        if not isinstance(values, Mapping):
            raise InputError(f"{path}={values!r:.50}: expected a JSON object")
        for name in ("threshold", "temperature", "rule", "chosen_on"):
            if name not in values:
                raise InputError(f"{path}.{name}: missing; evaluate the run again")
        unknown = dict(values)
        names = [name for name in cls.keys() if name in values and name != "extra"]  # noqa: SIM118
        return cls.from_config({name: unknown.pop(name) for name in names}, path, extra=unknown)

    def to_dict(self) -> JsonDict:
        """As JSON values."""
        values = {**dataclasses.asdict(self), "notes": list(self.notes)}
        extra = values.pop("extra")
        if self.step is None:
            del values["step"]
        if self.method == "temperature":
            for name in ("method", "shift", "knots"):
                del values[name]
        return {**extra, **values}


def _are_stain_settings(settings: Any) -> bool:
    """Whether they are the name of a method, and numbers or lists or matrices of them.

    They were resolved before they were stored: a file that names a reference image would make us
    open whatever it likes.
    """
    if not isinstance(settings, Mapping):
        return False
    values = [value for name, value in settings.items() if name != "method"]
    for _ in range(2):
        values = [x for v in values for x in (v if isinstance(v, list | tuple) else [v])]
    return (
        "reference" not in settings
        and isinstance(settings.get("method", ""), str)
        and all(type(x) in (int, float) and abs(x) <= _MAX_STAIN_SETTING for x in values)
    )


def _pair_within(limits: tuple[float, float], unit: str) -> Any:
    low, high = limits
    return setting(
        None,
        f"two numbers of {unit} from {low:g} to {high:g}, or null",
        lambda pair: pair is None or are_within(limits, *pair),
    )


@dataclasses.dataclass(frozen=True)
class InferenceSettings(Settings):
    """How to use a trained network on new images, as its training and evaluation settled it.

    Attributes:
      image_size: (height, width) in pixels that images are resized to; None if unknown.
      stain: settings of `data.images.stain_normalization`, which checks their shapes; {} for none.
      bits: how many bits the values of images with more than 8 use; 0 if unknown.
      dtype: what the network computes in.
      patient_group: which of the data set's groups was a patient; '' if unknown.
      patient_pattern: regular expression that finds the patient in a file's path; '' for none.
      patient_source: where the patients came from in training, a constant of
        `data.sources.patients`; '' if unknown.
      merge_patients: whether patients whose names differ only in spelling are one.
      mpp: micrometers per pixel of the training tiles on disk, (y, x); None if unknown.
      field_um: (height, width) in micrometers that one input shows; None if unknown.
      operating_point: of the evaluation; None if there was none.
    """

    image_size: tuple[int, int] | None = setting(
        None,
        f"height and width from 1 to {MAX_IMAGE_SIZE} pixels",
        lambda size: size is None or all(1 <= length <= MAX_IMAGE_SIZE for length in size),
    )
    stain: Mapping[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata={"expected": lambda: "a method and its numbers", "allowed": _are_stain_settings},
    )
    bits: int = setting(0, "8 to 16, or 0 if unknown", lambda bits: bits in (0, *range(8, 17)))
    dtype: str = choice("float32", DTYPES)
    patient_group: str = ""
    patient_pattern: str = setting(
        "",
        f"a regular expression of at most {MAX_LENGTH} characters",
        lambda pattern: not pattern_fault(pattern),
    )
    patient_source: str = ""
    merge_patients: bool = False
    mpp: tuple[float, float] | None = _pair_within(MPP_RANGE, "micrometers per pixel")
    field_um: tuple[float, float] | None = _pair_within(FIELD_RANGE, "micrometers")
    operating_point: StoredOperatingPoint | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "InferenceSettings":
        """The inverse of `to_dict`; other keys are ignored, and null is a key that is not there."""
        known = {n: values[n] for n in cls.keys() if values.get(n) is not None}  # noqa: SIM118
        point, stain = known.pop("operating_point", {}), known.pop("stain", {})
        stored = None if point == {} else StoredOperatingPoint.from_dict(point)
        return cls.from_config(known, "extra", operating_point=stored, stain=stain)

    def to_dict(self) -> JsonDict:
        """As JSON values; without what is as by default."""
        defaults = vars(InferenceSettings())
        given = {n: v for n, v in dataclasses.asdict(self).items() if v != defaults[n]}
        values = {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()}
        if self.operating_point:
            values["operating_point"] = self.operating_point.to_dict()
        return values
