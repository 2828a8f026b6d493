"""How to use a trained network on new images: what its training and evaluation settled."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from densenet_flax.common.errors import InputError
from densenet_flax.common.types import JsonDict
from densenet_flax.weights.json_checks import (
    are_strings,
    as_list,
    as_tuple,
    expect_valid,
    is_integer,
    is_number,
    is_object,
)

DTYPES = ("float32", "bfloat16")

# Far beyond any image that a DenseNet was trained on, and still within memory.
_IMAGE_SIZES = (32, 4096)
# Temperatures are fitted between 0.05 and 20; far beyond that, probabilities overflow.
_TEMPERATURES = (1e-3, 1e3)
_LARGEST_STAIN_SETTING = 1e6
_LONGEST_PATTERN = 1000


@dataclasses.dataclass(frozen=True)
class StoredOperatingPoint:
    """How the evaluation of a run turned probabilities into decisions.

    Attributes:
      threshold: positive from this probability on; None with more than two classes, where the
        likeliest class is the decision.
      temperature: divides the logits for calibrated probabilities.
      rule: how the threshold was chosen.
      chosen_on: the images it was chosen on.
      notes: what could not be chosen, and why.
      tta: whether predictions were averaged over the symmetries of the image.
      step: of the checkpoint that was evaluated.
      extra: keys of a later version.
    """

    threshold: float | None
    temperature: float
    rule: str
    chosen_on: str
    notes: tuple[str, ...] = ()
    tta: bool = False
    step: int | None = None
    extra: JsonDict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        def expect(name: str, is_valid: bool, expected: str) -> None:
            expect_valid(f"extra.operating_point.{name}", getattr(self, name), is_valid, expected)

        is_share = is_number(self.threshold, 0, 1)
        expect("threshold", self.threshold is None or is_share, "a number from 0 to 1, or null")
        low, high = _TEMPERATURES
        in_range = is_number(self.temperature, low, high)
        expect("temperature", in_range, f"a number from {low:g} to {high:g}")
        expect("rule", isinstance(self.rule, str), "a string")
        expect("chosen_on", isinstance(self.chosen_on, str), "a string")
        expect("notes", are_strings(self.notes), "a list of strings")
        expect("tta", isinstance(self.tta, bool), "true or false")
        expect("step", self.step is None or is_integer(self.step, 0), "an integer from 0")
        expect("extra", is_object(self.extra), "a JSON object")

    @classmethod
    def from_dict(cls, values: Any) -> "StoredOperatingPoint":
        """The inverse of `to_dict`.

        Raises:
          InputError: a value is missing or cannot be used.
        """
        expect_valid("extra.operating_point", values, is_object(values), "a JSON object")
        names = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        for name in ("threshold", "temperature", "rule", "chosen_on"):
            if name not in values:
                raise InputError(
                    f"weights info: extra.operating_point has no {name!r}; evaluate the run again"
                )
        known = {name: as_tuple(value) for name, value in values.items() if name in names}
        unknown = {name: value for name, value in values.items() if name not in names}
        return cls(**known, extra=unknown)

    def to_dict(self) -> JsonDict:
        """As JSON values."""
        values = {**dataclasses.asdict(self), "notes": list(self.notes)}
        extra = values.pop("extra")
        if self.step is None:
            del values["step"]
        return {**extra, **values}


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """How to use a trained network on new images, as its training and evaluation settled it.

    Attributes:
      image_size: (height, width) in pixels that images are resized to; None if unknown.
      stain: settings of `data.images.stain_normalization`, which checks their shapes; {} for none.
      dtype: what the network computes in, 'float32' or 'bfloat16'.
      patient_group: which of the data set's groups was a patient; '' if unknown.
      patient_pattern: regular expression that finds the patient in a file's path; '' for none.
      operating_point: of the evaluation; None if there was none.
    """

    image_size: tuple[int, int] | None = None
    stain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    patient_group: str = ""
    patient_pattern: str = ""
    operating_point: StoredOperatingPoint | None = None

    def __post_init__(self):
        def expect(name: str, is_valid: bool, expected: str) -> None:
            expect_valid(f"extra.{name}", getattr(self, name), is_valid, expected)

        low, high = _IMAGE_SIZES
        is_size = isinstance(self.image_size, tuple) and [
            is_integer(length, low, high) for length in self.image_size
        ] == [True, True]
        expected = f"[height, width] from {low} to {high} pixels"
        expect("image_size", self.image_size is None or is_size, expected)
        expect("stain", is_object(self.stain), "a JSON object")
        for name, value in self.stain.items():
            is_setting = isinstance(value, str) if name == "method" else _are_numbers(value)
            # A reference image is resolved to numbers before it is stored; a file that names one
            # would make us open whatever it likes.
            is_setting = is_setting and name != "reference"
            expect_valid(f"extra.stain.{name}", value, is_setting, "a method's name or its numbers")
        expect("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        expect("patient_group", isinstance(self.patient_group, str), "a string")
        expected = f"a regular expression of at most {_LONGEST_PATTERN} characters"
        expect("patient_pattern", _is_pattern(self.patient_pattern), expected)
        is_point = isinstance(self.operating_point, StoredOperatingPoint | None)
        expect("operating_point", is_point, "a StoredOperatingPoint")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "InferenceSettings":
        """The inverse of `to_dict`; other keys are ignored, and null is a key that is not there.

        Raises:
          InputError: a value cannot be used.
        """
        known = {
            field.name: as_tuple(values[field.name])
            for field in dataclasses.fields(cls)
            if values.get(field.name) is not None
        }
        point = known.pop("operating_point", {})
        if point != {}:
            known["operating_point"] = StoredOperatingPoint.from_dict(point)
        return cls(**known)

    def to_dict(self) -> JsonDict:
        """As JSON values; without what is not known."""
        values: JsonDict = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, StoredOperatingPoint):
                values[field.name] = value.to_dict()
            elif value and value != field.default:
                values[field.name] = dict(value) if isinstance(value, Mapping) else as_list(value)
        return values


def _are_numbers(value: Any) -> bool:
    """Whether it is a number, or a list or a matrix of them."""
    rows = value if isinstance(value, list | tuple) else [value]
    numbers = [x for row in rows for x in (row if isinstance(row, list | tuple) else [row])]
    return all(is_number(x, -_LARGEST_STAIN_SETTING, _LARGEST_STAIN_SETTING) for x in numbers)


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > _LONGEST_PATTERN:
        return False
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
