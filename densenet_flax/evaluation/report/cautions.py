"""What a report says in plain words: the verdict, and what speaks against believing it."""

from collections.abc import Iterator, Mapping
from typing import Any

from densenet_flax.evaluation.report.wording import class_totals, listed

# Below this many patients of a class, one patient moves its recall by more than ten points.
FEW_PATIENTS = 10


def verdict(metrics: Mapping[str, Any]) -> str:
    """The one sentence; "never seen in training" only if `run.split` vouches for it."""
    image, patient = metrics["image"], metrics["patient"]
    split = metrics.get("run", {}).get("split") or {}
    unseen = " never seen in training" if split.get("patient_disjoint") is True else ""
    drawn = metrics.get("intervals")
    span = drawn["image"]["accuracy"] if drawn else None
    interval = (
        f" ({drawn['level']:.0%} interval {span['low']:.2f} to {span['high']:.2f})"
        if drawn and span
        else ""
    )
    classes = len(metrics["class_names"])
    among = f" over {classes} classes" if classes > 2 else ""
    return (
        f"Accuracy {image['accuracy']:.2f}{among}{interval} on {count(image['n'], 'image')} "
        f"of {count(patient['n'], 'patient')}{unseen}"
    )


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """What the numbers themselves say against being believed, gravest first."""
    return [
        *_leaks(metrics),
        *_patients(metrics),
        *_certainty(metrics),
        *_guessing(metrics),
        *_validation(metrics),
    ]


def count(n: int, noun: str) -> str:
    """'1 image', '2 images'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _leaks(metrics: Mapping[str, Any]) -> Iterator[str]:
    if (metrics["run"].get("split") or {}).get("patient_disjoint") is False:
        yield (
            "Patients on both sides of the split: the network has seen other images of the same "
            "tissue, so these figures are too good for a new patient."
        )
    shared = metrics.get("shared_with_validation")
    if shared:
        chosen = "threshold and the temperature" if metrics["positive_class"] else "temperature"
        yield (
            f"{count(shared, 'test patient')} also gave validation images, which chose the "
            f"{chosen} and often the epoch: these figures are too good for a new patient."
        )


def _patients(metrics: Mapping[str, Any]) -> Iterator[str]:
    patient, names = metrics["patient"], metrics["class_names"]
    absent = [name for name, n in zip(names, class_totals(metrics), strict=True) if n == 0]
    gone = "most metrics" if len(names) == 2 else "means over the classes"
    if absent:
        yield f"There is not one {' or '.join(absent)} image here, so {gone} do not exist."
    few = {name: patient["n_by_class"][name] for name in names}
    few = {name: n for name, n in few.items() if 0 < n < FEW_PATIENTS}
    if few:
        if len(names) == 2:
            said = "Only " + " and ".join(count(n, f"{name} patient") for name, n in few.items())
        else:
            said = f"Few patients: {listed([_few(*item) for item in few.items()])}"
        yield (
            f"{said}: another choice of patients could change every figure by much, and even the "
            "intervals are not wide enough with so few."
        )
    several = "both" if len(names) == 2 else "several"
    mixed = patient["n_by_class"].get(several, 0)
    if mixed:
        yield (
            f"{count(mixed, 'patient')} with images of {several} classes: they have no single true "
            "class, so of the patient-level metrics only the recognition rate exists."
        )


def _few(name: str, n: int) -> str:
    return f"{n} {name.replace('_', ' ')}"


def _certainty(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Resampling says nothing where there is no mistake, and a reader may take it for certainty."""
    if metrics["image"]["accuracy"] == 1:
        n = metrics["patient"]["n"]
        yield (
            "Every image is right, so resampling finds no spread and there are no intervals. "
            f"That is not certainty: with no mistake on {count(n, 'patient')}, up to "
            f"{1 - 0.05 ** (1 / n):.0%} of patients could still be misjudged (exact 95% bound)."
        )


def _guessing(metrics: Mapping[str, Any]) -> Iterator[str]:
    image, totals = metrics["image"], class_totals(metrics)
    always = max(totals) / image["n"]
    if sum(total > 0 for total in totals) > 1 and image["accuracy"] <= always:
        common = metrics["class_names"][totals.index(max(totals))]
        yield (
            f"Accuracy {image['accuracy']:.3f} is no better than calling every image {common} "
            f"({always:.3f})."
        )


def _validation(metrics: Mapping[str, Any]) -> Iterator[str]:
    point = metrics["operating_point"]
    for note in point["notes"] if point else ():
        yield f"{note[0].upper()}{note[1:]}."
    test = metrics["calibration"]["test"]
    if test["after"] and test["after"]["nll"] > test["before"]["nll"] + 0.005:
        yield (
            "The temperature that was best on validation made the test probabilities worse "
            f"(NLL {test['before']['nll']:.3f} before, {test['after']['nll']:.3f} after): "
            "validation and test images differ, or validation is small."
        )
