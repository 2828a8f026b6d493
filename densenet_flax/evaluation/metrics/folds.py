"""Several test sets, one network each: cross-validation folds seen together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.metrics.compute import image_metrics, patient_metrics, points
from densenet_flax.evaluation.metrics.intervals import LEVEL, RESAMPLES, Settings, sample_intervals
from densenet_flax.evaluation.metrics.measures import measures_of
from densenet_flax.evaluation.metrics.sample import sample_of
from densenet_flax.evaluation.predictions import Predictions


def pool(folds: Sequence[Predictions], threshold: float | None = None) -> Predictions:
    """One table of all folds' test images.

    Args:
        folds: The folds; each patient in one of them only.
        threshold: Judges all folds by this one. None takes the folds' own, which must then be
            equal; `cross_validation_summary` can pool folds with a threshold each.

    Raises:
        InputError: No folds, other classes, an image or a patient in two folds, or thresholds
            that differ.
    """
    reason = _why_not_pooled(folds)
    if reason:
        raise InputError(f"folds cannot be pooled: {reason}")
    own = sorted({fold.threshold for fold in folds})
    if threshold is None and len(own) > 1:
        raise InputError(
            f"folds cannot be pooled into one table: their thresholds go from {own[0]:.3g} to "
            f"{own[-1]:.3g}; give one threshold for all, or use cross_validation_summary"
        )
    names = ("file", "patient", "subtype", "magnification", "slide", "label", "probability")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(fold, name) for fold in folds]) for name in names
    }
    calibrated = [fold.calibrated for fold in folds if fold.calibrated is not None]
    columns["calibrated"] = np.concatenate(calibrated) if len(calibrated) == len(folds) else None
    return replace(folds[0], **columns, threshold=own[0] if threshold is None else threshold)


def cross_validation_summary(
    folds: Sequence[Predictions],
    names: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Every fold, mean ± SD over folds, and all folds pooled with patient-clustered intervals.

    Each image and patient is called at the threshold of its own fold. The SD says how much
    results vary from fold to fold; it is not a standard error, since folds share training data.

    Args:
        folds: One table per fold.
        names: Of the folds; 'fold 1' and so on by default.
        resamples: How many, for the pooled intervals.
        seed: For the same.
        level: For the same.

    Returns:
        'folds', 'mean' and 'pooled' (None, with the reason under 'pooled_undefined', if an image
        or a patient is in two folds); see docs/evaluation.md.

    Raises:
        InputError: No folds, or folds of other classes.
    """
    settings = Settings(resamples, seed, level)
    if not folds:
        raise InputError("cross-validation: no folds were given")
    if len({fold.class_names for fold in folds}) > 1:
        raise InputError("cross-validation: the folds have other classes")
    names = [f"fold {i + 1}" for i in range(len(folds))] if names is None else names
    rows: list[dict[str, Any]] = [
        {
            "name": str(name),
            "threshold": fold.threshold if len(fold.class_names) == 2 else None,
            "image": image_metrics(fold),
            "patient": patient_metrics(fold),
        }
        for name, fold in zip(names, folds, strict=True)
    ]
    reason = _why_not_pooled(folds)
    pooled = None
    if not reason:
        sample = sample_of(folds)
        pooled = {
            **points(sample, folds[0].class_names),
            "intervals": {
                **settings.describe(),
                **sample_intervals(sample, folds[0].class_names, settings),
            },
        }
    return {
        "folds": rows,
        "mean": {
            unit: {name: _mean([row[unit][name] for row in rows]) for name in metrics}
            for unit, metrics in measures_of(folds[0].probability).units().items()
        },
        "pooled": pooled,
        "pooled_undefined": reason or None,
    }


def summary_table(summary: dict[str, Any]) -> str:
    """The summary as text, for a terminal."""
    rows, pooled = summary["folds"], summary["pooled"]
    width = max(map(len, summary["mean"]["patient"]))
    column = max(8, *(len(row["name"]) + 2 for row in rows))
    lines = []
    for unit, names in summary["mean"].items():
        head = "".join(f"{row['name']:>{column}}" for row in rows)
        lines += [f"{unit + ' level':<{width}}{head}   {'mean ± SD':<15}pooled"]
        counts = "".join(f"{row[unit]['n']:>{column}}" for row in rows)
        total = pooled[unit]["n"] if pooled else "–"
        lines += [f"{'n':<{width}}{counts}   {'':<15}{total}"]
        for name in names:
            values = "".join(f"{_number(row[unit][name]):>{column}}" for row in rows)
            mean = summary["mean"][unit][name]
            spread = f"{_number(mean['mean'])} ± {_number(mean['sd'])}"
            whole = "–"
            if pooled:
                span = pooled["intervals"][unit][name]
                whole = _number(pooled[unit][name])
                whole += f" ({span['low']:.3f} to {span['high']:.3f})" if span else ""
            lines.append(f"{name:<{width}}{values}   {spread:<15}{whole}")
        lines.append("")
    if pooled is None:
        lines.append(f"not pooled: {summary['pooled_undefined']}")
    else:
        drawn = pooled["intervals"]
        lines.append(
            f"pooled: {drawn['level']:.0%} intervals, {drawn['resamples']} resamples of patients, "
            f"stratified by class, seed {drawn['seed']}"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean(values: list[float | None]) -> dict[str, Any]:
    """Mean and sample SD of the folds that have a value, and how many have."""
    exist = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(exist)) if exist else None,
        "sd": float(np.std(exist, ddof=1)) if len(exist) > 1 else None,
        "folds": len(exist),
    }


def _why_not_pooled(folds: Sequence[Predictions]) -> str:
    if not folds:
        return "there are none"
    if len({fold.class_names for fold in folds}) > 1:
        return "they have other classes"
    for what in ("file", "patient"):
        seen = Counter(name for fold in folds for name in set(getattr(fold, what).tolist()))
        twice = [name for name, times in seen.items() if times > 1]
        if twice:
            kind = "images" if what == "file" else "patients"
            return f"{len(twice)} {kind} are in more than one fold, such as '{twice[0]}'"
    return ""
