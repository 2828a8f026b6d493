"""The patient-clustered bootstrap: resamples of the patients, intervals and p-values from them.

Images of one patient resemble each other, so 1,600 images of 28 patients are not 1,600
observations. Patients are therefore resampled, with all their images (the cluster bootstrap:
Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8), within their class
(stratified), and an interval is what the middle 95 % of the resamples say, or a little more than
95 % where patients are few. What an interval does not cover is in docs/evaluation.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.multiclass import MACRO
from densenet_flax.evaluation.metrics.sample import Sample, Values, Weights

RESAMPLES = 2000
LEVEL = 0.95
METHOD = "patient-clustered bootstrap, stratified by class, percentiles widened for few patients"
# If more of the resamples than this have no value, percentiles of the others mean little.
_MAX_UNDEFINED_SHARE = 0.5


class Basis(NamedTuple):
    """How many patients a metric rests on: how much resampling them can say about it.

    Attributes:
      patients: Patients of the rarest class that the metric looks at; of several classes the
        number that, drawn alone, would vary as they do together.
      freedom: Degrees of freedom, None for one less than there are patients.
      reason: Why resampling can say nothing, or ''. Drawing one patient out of one returns that
        patient every time: an interval without width where there is the most doubt.
    """

    patients: float
    freedom: float | None = None
    reason: str = ""


class Interval(TypedDict):
    """An interval in metrics.json; both ends are None if too few resamples have a value."""

    low: float | None
    high: float | None
    undefined_resamples: int


@dataclass(frozen=True)
class Bootstrap:
    """How to resample.

    Attributes:
      resamples: Number of resamples.
      seed: The same seed draws the same resamples.
      level: Share of the resamples inside an interval.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise InputError(f"resamples is {self.resamples}; expected 1 or more, usually 2000")
        if not 0 < self.level < 1:
            raise InputError(f"level is {self.level}; expected between 0 and 1, such as 0.95")

    def describe(self) -> JsonDict:
        """Returns the settings for metrics.json."""
        settings = {"level": self.level, "resamples": self.resamples, "seed": self.seed}
        return {"method": METHOD, **settings}

    def draw(self, sample: Sample) -> Weights:
        """Returns how often each patient is in each resample."""
        return draw_patients(strata(sample), self.resamples, self.seed)

    def interval(self, values: Values, basis: Basis) -> Interval:
        """Returns percentiles of the values that exist, widened for few patients."""
        defined = values[np.isfinite(values)]
        undefined = len(values) - len(defined)
        if undefined > _MAX_UNDEFINED_SHARE * len(values):
            return {"low": None, "high": None, "undefined_resamples": undefined}
        tail = self.tail(basis)
        low, high = np.quantile(defined, [tail, 1 - tail])
        return {"low": float(low), "high": float(high), "undefined_resamples": undefined}

    def tail(self, basis: Basis) -> float:
        """Returns the share of the resamples to leave out at either end.

        This is (1 − level) / 2 if there were many patients. For few, plain percentiles are too
        narrow in two ways: the deviation of a mean over resamples is too small by
        sqrt((n − 1) / n), and they have a normal distribution's tails where Student's t belongs.
        The percentiles returned make up for both: the "expanded percentile interval" of Hesterberg,
        What Teachers Should Know About the Bootstrap, The American Statistician 69(4), 2015.
        """
        plain = (1 - self.level) / 2
        n = basis.patients
        if n <= 1:
            return plain
        return float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(plain, _freedom(basis))))


def p_value(differences: Values, basis: Basis) -> float:
    """Returns the two-sided bootstrap p-value of a difference.

    This is twice the share of the resamples on the other side of 0. One is added to the counts,
    because no number of resamples can show that something never happens (Davison and Hinkley,
    section 4.2). For few patients the share is enlarged by the inverse of `Bootstrap.tail`, so
    that p falls below 1 − level where the interval excludes 0.
    """
    defined = differences[np.isfinite(differences)]
    # Where two values are equal, rounding leaves ±1e-17 of their difference; that counts as 0.
    tolerance = 1e-12
    tail = min(np.sum(defined <= tolerance), np.sum(defined >= -tolerance))
    share = min(0.5, (tail + 1) / (len(defined) + 1))
    n = basis.patients
    if n > 1:
        share = stats.t.cdf(np.sqrt((n - 1) / n) * stats.norm.ppf(share), _freedom(basis))
    return float(2 * share)


def _freedom(basis: Basis) -> float:
    return basis.patients - 1 if basis.freedom is None else basis.freedom


def strata(sample: Sample) -> Int[np.ndarray, " P"]:
    """Returns the groups within which patients are drawn.

    Patients are drawn within their class, so that every resample has as many of each class as the
    sample: the number of malignant patients was a choice of the data set and not chance, and a
    resample without one of the classes would have no AUC. Patients with images of several classes
    are one more group.

    Of more than two classes one may have a single patient, who would be in every resample exactly
    once, so that nothing would show how that class varies. Such patients are one stratum, and
    with the smallest other class if there is only one of them. (Of two classes that would mix the
    classes; instead there is no interval, see `basis_of`.)
    """
    label = sample.patient.label
    if sample.classes == 2:
        return label
    groups, sizes = np.unique(label, return_counts=True)
    single = list(groups[sizes == 1])
    larger = sorted((size, group) for size, group in zip(sizes, groups, strict=True) if size > 1)
    if len(single) == 1 and larger:
        single.append(larger[0][1])
    return np.where(np.isin(label, single), -2, label)


def draw_patients(stratum: Int[np.ndarray, " P"], resamples: int, seed: int) -> Weights:
    """Draws patients with replacement within their stratum; returns how often each is drawn."""
    random = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(stratum)))
    for group in np.unique(stratum):
        members = np.flatnonzero(stratum == group)
        drawn = random.integers(0, len(members), (resamples, len(members)))
        # One bincount for all resamples: each counts in a range of numbers of its own.
        numbers = (drawn + np.arange(resamples)[:, None] * len(members)).ravel()
        times = np.bincount(numbers, minlength=resamples * len(members))
        weights[:, members] = times.reshape(resamples, len(members))
    return weights


def basis_of(sample: Sample, name: str, class_names: Sequence[str]) -> Basis:
    """Returns what a metric over all classes rests on; '' names a mean over all images."""
    if sample.classes == 2:
        return _two_classes(sample, name, class_names)
    if sample.patients == 1:
        return _only_one("patient")
    if name not in MACRO:  # every image or patient has the same weight
        sizes = np.unique(strata(sample), return_counts=True)[1]
        return _combined(sizes, sizes)
    # A mean over classes: every class has the same weight.
    patients = (sample.images_by_class > 0).sum(axis=0)
    single = np.flatnonzero(patients == 1)
    if len(single):
        return _only_one(f"{class_names[single[0]]} patient")
    patients = patients[patients > 0]
    return _combined(patients, np.ones(len(patients)))


def one_class_basis(
    sample: Sample, name: str, class_names: Sequence[str], class_index: int
) -> Basis:
    """Returns what a metric of one of several classes rests on.

    This is the number of patients of that class or, but for the recall, of the other classes if
    they are fewer.
    """
    if sample.patients == 1:
        return _only_one("patient")
    has_class = sample.images_by_class > 0
    patients = int(has_class[:, class_index].sum())
    if patients == 1:
        return _only_one(f"{class_names[class_index]} patient")
    if name == "recall":
        return Basis(patients)
    others = int(np.delete(has_class, class_index, axis=1).any(axis=1).sum())
    if others == 1:
        return _only_one("patient of the other classes")
    return Basis(min(patients, others))


def _two_classes(sample: Sample, name: str, class_names: Sequence[str]) -> Basis:
    """The rarer class of those that the metric looks at; -1 are patients with images of both."""
    labels = {"sensitivity": (1, -1), "specificity": (0, -1)}.get(name, (0, 1, -1))
    patients = {label: int(np.sum(sample.patient.label == label)) for label in labels}
    for label, number in patients.items():
        if number == 1:
            both = "patient with images of both classes"
            return _only_one(both if label < 0 else f"{class_names[label]} patient")
    return Basis(min((number for number in patients.values() if number), default=0))


def _only_one(patient: str) -> Basis:
    return Basis(1, reason=f"only one {patient}, and one cannot be resampled")


def _combined(
    sizes: Int[np.ndarray, " G"], share: Int[np.ndarray, " G"] | Float[np.ndarray, " G"]
) -> Basis:
    """Groups of patients that are resampled separately and enter one metric with these shares.

    The variance of a group's mean is v = share²/n times the variance between its patients, which
    is taken as equal in all groups. Resampling n patients shows (n − 1)/n of it, so of all groups
    it misses Σ(v/n) ÷ Σv: as much as in one group of Σv ÷ Σ(v/n) patients. Satterthwaite's
    approximation (Biometrics Bulletin 2(6), 1946) of the degrees of freedom is
    (Σv)² ÷ Σ(v²/(n − 1)). With one group both are the plain n and n − 1.
    """
    sizes = sizes.astype(float)
    variance = share**2 / sizes
    missed = variance @ (1 / sizes) / variance.sum()
    # A group of one has no degree of freedom; 0.5 keeps its term large without dividing by 0.
    freedom = variance.sum() ** 2 / (variance**2 @ (1 / np.maximum(sizes - 1, 0.5)))
    return Basis(float(1 / missed), float(freedom))
