"""How many patients each metric rests on, which decides how far its interval is widened."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from densenet_flax.evaluation.metrics.bootstrap import Basis, strata
from densenet_flax.evaluation.metrics.multiclass import MACRO
from densenet_flax.evaluation.metrics.sample import Sample


def basis_of(sample: Sample, name: str, class_names: Sequence[str]) -> Basis:
    """Returns what a metric over all classes rests on.

    Args:
      sample: The images and patients.
      name: The metric; '' for a mean over all images.
      class_names: For the reason why there can be no interval.
    """
    if sample.classes == 2:
        return _two_classes(sample, name, class_names)
    if sample.patients == 1:
        return Basis(1, reason="only one patient, and one cannot be resampled")
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
        return Basis(1, reason="only one patient, and one cannot be resampled")
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
