"""Resamples of the patients, each with a pseudo-patient for those who were not drawn.

Images of one patient resemble each other, so 1,600 images of 28 patients are not 1,600
observations. Patients are therefore resampled, with all their images and within their class.

No resample of the patients at hand shows the patients that are missing among them: if none of 24
is hard for the network, none of any resample is. So each resample is the Bayesian bootstrap (Rubin,
The Annals of Statistics 9(1), 1981: patients are weighted by exponential numbers, none is ever
left out) with a pseudo-patient added, at its worst for the lower end of an interval and at its best
for the upper one (Gaffke, Mathematical Methods of Statistics 14, 2005; Learned-Miller and Thomas,
arXiv:1905.06208). For a proportion of patients this is the interval of Clopper and Pearson.

What an interval does not cover, and how often it covers, is in docs/evaluation.md.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float, Int

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.sample import Sample, Values, Weights

RESAMPLES = 2000
LEVEL = 0.95
METHOD = (
    "over patients, within their class: Clopper-Pearson for proportions of patients, a Bayesian "
    "bootstrap with pseudo-patients (Gaffke) for other figures, for areas and calibration with "
    "Student's t of the linearized figure"
)


class Interval(TypedDict):
    """An interval in metrics.json.

    Every resample has a value, so `undefined_resamples` is 0; reports of earlier versions read it.
    """

    low: float
    high: float
    undefined_resamples: int
    method: str


class Draws(NamedTuple):
    """Resamples: the weights of the patients, and of the pseudo-patient of each stratum.

    The weights of a stratum add up to its number of patients.
    """

    patients: Weights
    pseudo: Float[np.ndarray, "R S"]


@dataclass(frozen=True)
class Strata:
    """The groups within which patients are drawn.

    Attributes:
      index: The stratum of each patient.
      sizes: Number of patients in each.
    """

    index: Int[np.ndarray, " P"]
    sizes: Int[np.ndarray, " S"]

    @classmethod
    def of(cls, groups: Int[np.ndarray, " P"]) -> "Strata":
        """Numbers the groups that occur."""
        _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        return cls(index, sizes)

    def mean(self, values: Float[np.ndarray, "P *columns"]) -> Float[np.ndarray, "S *columns"]:
        """Returns the mean over the patients of each stratum."""
        total = np.zeros((len(self.sizes), *values.shape[1:]))
        np.add.at(total, self.index, values)
        return (total.T / self.sizes).T


@dataclass(frozen=True)
class Bootstrap:
    """How to resample.

    Attributes:
      resamples: Number of resamples.
      seed: The same seed draws the same resamples.
      level: Of the intervals, such as 0.95.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    level: float = LEVEL

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise InputError(f"resamples is {self.resamples}; expected 1 or more, usually 2000")
        if not 0 < self.level < 1:
            raise InputError(f"level is {self.level}; expected between 0 and 1, such as 0.95")

    @property
    def tail(self) -> float:
        """The share of the resamples outside an interval at either end."""
        return (1 - self.level) / 2

    def describe(self) -> JsonDict:
        """Returns the settings for metrics.json."""
        settings = {"level": self.level, "resamples": self.resamples, "seed": self.seed}
        return {"method": METHOD, **settings}

    def draw(self, strata: Strata, one_class: bool = False) -> Draws:
        """Draws the weights of patients and pseudo-patients.

        Args:
          strata: Of the patients.
          one_class: Each stratum has a whole pseudo-patient, for metrics that rest on one class.
            Otherwise the classes share one, since a whole one each would lower a mean over all
            by as many as there are classes; but a class of n patients has at least 1/n.
        """
        return _draw(self.resamples, self.seed, tuple(strata.index.tolist()), one_class)

    def interval(self, worst: Values, best: Values, point: float, method: str) -> Interval:
        """Returns the interval from the lower quantile of `worst` to the upper one of `best`.

        It holds the point estimate, which few resamples could leave out by chance.
        """
        low, high = np.quantile(worst, self.tail), np.quantile(best, 1 - self.tail)
        return make_interval(min(low, point), max(high, point), method)


@lru_cache(maxsize=4)  # of one table for all its figures
def _draw(resamples: int, seed: int, index: tuple[int, ...], one_class: bool) -> Draws:
    random, stratum = np.random.default_rng(seed), np.array(index)
    sizes = np.bincount(stratum)
    patients = random.exponential(size=(resamples, len(index)))
    share = np.ones(len(sizes)) if one_class else np.maximum(1 / len(sizes), 1 / sizes)
    pseudo = random.standard_gamma(share, (resamples, len(sizes)))
    for s, size in enumerate(sizes):
        members = stratum == s
        scale = size / (patients[:, members].sum(axis=1) + pseudo[:, s])
        patients[:, members] *= scale[:, None]
        pseudo[:, s] *= scale
    return Draws(patients, pseudo)


def make_interval(low: float, high: float, method: str) -> Interval:
    """Returns an interval as metrics.json has it."""
    return {"low": float(low), "high": float(high), "undefined_resamples": 0, "method": method}


def strata_of(sample: Sample) -> Strata:
    """Returns the strata of a sample: a patient's class; those of several classes are one more.

    Patients are drawn within their class because the number of malignant patients was a choice of
    the data set and not chance, and a resample without one of the classes would have no AUC.
    """
    return Strata.of(sample.patient.label)


def merged_strata(sample: Sample) -> Strata:
    """Returns strata of which each has two patients or more, as far as that is possible.

    A variance within a stratum needs two. Of more than two classes, those with a single patient
    are one stratum, and with the smallest other class if there is only one of them. (Of two
    classes that would mix the classes.)
    """
    label = sample.patient.label
    if sample.classes == 2:
        return Strata.of(label)
    groups, sizes = np.unique(label, return_counts=True)
    single = list(groups[sizes == 1])
    larger = sorted((size, group) for size, group in zip(sizes, groups, strict=True) if size > 1)
    if len(single) == 1 and larger:
        single.append(larger[0][1])
    return Strata.of(np.where(np.isin(label, single), -2, label))
