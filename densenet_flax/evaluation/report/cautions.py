"""What a report says in plain words: the verdict, and the reasons to doubt it."""

from collections.abc import Iterator

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.levels import ACCURACY_BY_MEAN
from densenet_flax.evaluation.report.headline import headline, not_better_than_chance
from densenet_flax.evaluation.report.wording import (
    confusion_counts,
    count,
    enumerate_words,
    majority_class,
)

# With fewer patients of a class, one patient changes its recall by more than ten points.
FEW_PATIENTS = 10
# Up to this increase of the NLL, in nats, a temperature counts as harmless.
_HARMFUL_INCREASE_OF_NLL = 0.005


def verdict(metrics: JsonDict) -> str:
    """The one sentence about a network.

    It claims "never seen in training" only if `run.split.patient_disjoint` is True.
    """
    split = metrics.get("run", {}).get("split") or {}
    unseen = " never seen in training" if split.get("patient_disjoint") is True else ""
    return headline(metrics, metrics.get("intervals"), unseen)


def warnings(metrics: JsonDict) -> list[str]:
    """The reasons in the numbers themselves to doubt them, the most serious first.

    Args:
      metrics: as `assess` returns them, with 'run'.
    """
    return [
        *_leaks(metrics),
        *_patients(metrics),
        *_no_mistakes(metrics),
        *_no_better_than_chance(metrics),
        *_operating_point(metrics),
    ]


def _leaks(metrics: JsonDict) -> Iterator[str]:
    if (metrics["run"].get("split") or {}).get("patient_disjoint") is False:
        yield (
            "Training and test images may be of the same patients (the split is not "
            "patient-disjoint), so these figures are too optimistic for a new patient."
        )
    shared = metrics.get("shared_with_validation")
    if shared:
        chosen = "threshold and the temperature" if metrics["positive_class"] else "temperature"
        yield (
            f"{count(shared, 'test patient')} also contributed validation images, on which the "
            f"{chosen} and often the epoch were chosen: these figures are too optimistic for a "
            "new patient."
        )


def _patients(metrics: JsonDict) -> Iterator[str]:
    patient, names = metrics["patient"], metrics["class_names"]
    binary = len(names) == 2
    totals = confusion_counts(metrics["image"]).sum(axis=1)
    absent = [name for name, n in zip(names, totals, strict=True) if n == 0]
    if absent:
        lost = "most metrics" if binary else "means over the classes"
        yield f"There are no {' or '.join(absent)} images here, so {lost} are undefined."
    few = {name: patient["n_by_class"][name] for name in names}
    few = {name: n for name, n in few.items() if 0 < n < FEW_PATIENTS}
    if few:
        if binary:
            patients = " and ".join(count(n, f"{name} patient") for name, n in few.items())
            subject = f"Only {patients}"
        else:
            counts = [f"{n} {name.replace('_', ' ')}" for name, n in few.items()]
            subject = f"Few patients: {enumerate_words(counts)}"
        yield (
            f"{subject}: another selection of patients could change every figure considerably, "
            "as the width of the intervals says."
        )
    several = "both" if binary else "several"
    mixed = patient["n_by_class"].get(several, 0)
    if mixed:
        yield (
            f"{count(mixed, 'patient')} with images of {several} classes: they have no single true "
            "class, so of the patient-level metrics only the recognition rate is defined."
        )


def _no_mistakes(metrics: JsonDict) -> Iterator[str]:
    # A reader may take accuracy 1 for certainty.
    if metrics["image"]["accuracy"] == 1:
        patient, intervals = metrics["patient"], metrics["intervals"]
        span = intervals["patient"].get(ACCURACY_BY_MEAN)
        bound = ""
        if span:
            bound = (
                f": with no mistake on {count(patient['n'], 'patient')}, up to "
                f"{1 - span['low']:.0%} of patients could still be misclassified (exact "
                f"{intervals['level']:.0%} interval)"
            )
        yield f"Every image is classified correctly. This is not certainty{bound}."


def _no_better_than_chance(metrics: JsonDict) -> Iterator[str]:
    reason = not_better_than_chance(metrics, metrics["intervals"])
    if reason:
        yield f"{reason}."
    accuracy = metrics["image"]["accuracy"]
    name, fraction = majority_class(metrics)
    # Where all images are of one class, no other prediction could be better.
    if fraction < 1 and accuracy <= fraction:
        yield (
            f"Accuracy {accuracy:.3f} is no better than predicting {name} for every image "
            f"({fraction:.3f})."
        )


def _operating_point(metrics: JsonDict) -> Iterator[str]:
    point = metrics["operating_point"]
    for note in point["notes"] if point else ():
        yield f"{note[0].upper()}{note[1:]}."
    before, after = (metrics["calibration"]["test"][state] for state in ("before", "after"))
    if after and after["nll"] > before["nll"] + _HARMFUL_INCREASE_OF_NLL:
        methods = {"platt": "Platt scaling", "isotonic": "isotonic regression"}
        fitted = methods.get(point.get("method", "") if point else "", "temperature")
        yield (
            f"The {fitted} fitted on the validation images made the probabilities of the test "
            f"images worse (NLL {before['nll']:.3f} before, {after['nll']:.3f} after): validation "
            "and test images differ, or there are too few validation images."
        )
