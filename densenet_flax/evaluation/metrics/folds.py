"""Cross-validation: several test sets, each with a network of its own, as one result."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from densenet_flax.common.errors import InputError, printable
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.bootstrap import LEVEL, RESAMPLES, Bootstrap
from densenet_flax.evaluation.metrics.intervals import sample_intervals
from densenet_flax.evaluation.metrics.levels import level_metrics, metric_set, point_metrics
from densenet_flax.evaluation.metrics.sample import sample_of
from densenet_flax.evaluation.predictions import COLUMNS, Predictions


def pool(folds: Sequence[Predictions], threshold: float | None = None) -> Predictions:
    """Returns one table of all folds' test images.

    Args:
      folds: The folds; each image and patient in one of them only, and the same classes in all.
      threshold: Used for all folds. None takes the folds' own, which must then be equal;
        `cross_validation_summary` can pool folds with different thresholds.

    Raises:
      InputError: The folds are not like that.
    """
    reason = _why_not_pooled(folds)
    if reason:
        raise InputError(f"folds cannot be pooled: {reason}")
    thresholds = sorted({fold.threshold for fold in folds})
    if threshold is None and len(thresholds) > 1:
        raise InputError(
            f"folds cannot be pooled into one table: their thresholds go from {thresholds[0]:.3g} "
            f"to {thresholds[-1]:.3g}; give one threshold for all, or use cross_validation_summary"
        )
    names = [*COLUMNS, "probability"]
    columns: dict[str, Any] = {"calibrated": None}
    # Calibrated probabilities of some folds would be a column with holes.
    if all(fold.calibrated is not None for fold in folds):
        names.append("calibrated")
    columns |= {name: np.concatenate([getattr(fold, name) for fold in folds]) for name in names}
    return replace(folds[0], **columns, threshold=thresholds[0] if threshold is None else threshold)


def cross_validation_summary(
    folds: Sequence[Predictions],
    names: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> JsonDict:
    """Summarizes folds: each one, mean ± SD, and all pooled with patient-clustered intervals.

    Each image and patient is decided at the threshold of its own fold. The SD says how much results
    vary from fold to fold; it is not a standard error, since folds share training data (Bengio and
    Grandvalet, Journal of Machine Learning Research 5, 2004).

    The names are those of the folds, 'fold 1' and so on by default; resamples, seed and level are
    those of `Bootstrap`, for the pooled intervals.

    Returns:
      'folds', 'mean' and 'pooled' (None, with the reason under 'pooled_undefined', if an image or a
      patient is in two folds).
    """
    bootstrap = Bootstrap(resamples, seed, level)
    if not folds:
        raise InputError("cross-validation: no folds were given")
    if len({fold.class_names for fold in folds}) > 1:
        raise InputError("cross-validation: the folds have other classes")
    class_names = folds[0].class_names
    names = [f"fold {i + 1}" for i in range(len(folds))] if names is None else names
    rows: list[JsonDict] = [
        {
            "name": str(name),
            "threshold": fold.threshold if len(class_names) == 2 else None,
            **level_metrics(sample_of(fold), class_names),
        }
        for name, fold in zip(names, folds, strict=True)
    ]
    reason, pooled = _why_not_pooled(folds), None
    if not reason:
        # Not by `pool`: a table has one threshold, and each fold may have its own.
        sample = sample_of(*folds)
        spans = bootstrap.describe() | sample_intervals(sample, class_names, bootstrap)
        pooled = {**point_metrics(sample, class_names), "intervals": spans}
    return {
        "folds": rows,
        "mean": {
            level_name: {name: _mean([row[level_name][name] for row in rows]) for name in metrics}
            for level_name, metrics in metric_set(len(class_names)).levels.items()
        },
        "pooled": pooled,
        "pooled_undefined": reason or None,
    }


def _mean(values: Sequence[float | None]) -> JsonDict:
    """A metric over the folds that have it; the sample SD needs two of them."""
    defined = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(defined)) if defined else None,
        "sd": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
        "folds": len(defined),
    }


def _why_not_pooled(folds: Sequence[Predictions]) -> str:
    if not folds:
        return "there are none"
    if len({fold.class_names for fold in folds}) > 1:
        return "they have other classes"
    # A patient in two folds would be drawn twice in a pooled resample, once with each network.
    for column, noun in (("file", "images"), ("patient", "patients")):
        folds_with = Counter(name for fold in folds for name in np.unique(getattr(fold, column)))
        repeated = [name for name, number in folds_with.items() if number > 1]
        if repeated:
            return f"{len(repeated)} {noun} are in more than one fold, such as '{repeated[0]}'"
    return ""


def summary_table(summary: JsonDict) -> str:
    """Returns the summary as text, for a terminal."""
    rows, pooled = summary["folds"], summary["pooled"]
    width = max(map(len, summary["mean"]["patient"]))
    column = max(8, *(len(row["name"]) + 2 for row in rows))
    lines = []
    for level, means in summary["mean"].items():
        head = "".join(f"{row['name']:>{column}}" for row in rows)
        counts = "".join(f"{row[level]['n']:>{column}}" for row in rows)
        lines += [
            f"{level + ' level':<{width}}{head}   {'mean ± SD':<15}pooled",
            f"{'n':<{width}}{counts}   {'':<15}{pooled[level]['n'] if pooled else '–'}",
        ]
        for name, mean in means.items():
            values = "".join(f"{_number(row[level][name]):>{column}}" for row in rows)
            mean_sd = f"{_number(mean['mean'])} ± {_number(mean['sd'])}"
            total = "–"
            if pooled:
                interval = pooled["intervals"][level][name]
                total = _number(pooled[level][name])
                total += f" ({interval['low']:.3f} to {interval['high']:.3f})" if interval else ""
            lines.append(f"{name:<{width}}{values}   {mean_sd:<15}{total}")
        lines.append("")
    if pooled is None:
        lines.append(f"not pooled: {summary['pooled_undefined']}")
    else:
        lines.append(
            "pooled: {level:.0%} intervals over patients within class, {resamples} resamples, "
            "seed {seed}".format(**pooled["intervals"])
        )
    return "\n".join(map(printable, lines)) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
