"""Two networks on the same test images: what the second gains, and whether it could be chance."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.metrics.compute import image_metrics, patient_metrics
from densenet_flax.evaluation.metrics.intervals import LEVEL, RESAMPLES, Settings
from densenet_flax.evaluation.metrics.measures import measures_of
from densenet_flax.evaluation.metrics.resampling import image_values, patient_values
from densenet_flax.evaluation.metrics.sample import Basis, sample_of
from densenet_flax.evaluation.predictions import Predictions


def compare(
    predictions_a: Predictions,
    predictions_b: Predictions,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Any]:
    """The difference of every metric, B minus A, on the same resamples of the same patients.

    Each table keeps its own threshold. Pairing matters: a hard patient is hard for both
    networks, and drops out of the difference.

    Args:
        predictions_a: The one to beat.
        predictions_b: The other, of the same images; the order of rows may differ.
        resamples: How many.
        seed: The same seed gives the same result.
        level: Share of the resamples inside an interval.

    Returns:
        'image' and 'patient': metric -> 'a', 'b', 'difference', 'low', 'high', 'p' (two-sided
        bootstrap) and 'undefined_resamples', or None with the reason under 'undefined'.

    Raises:
        InputError: The tables are not of the same images, patients and classes.
    """
    settings = Settings(resamples, seed, level)
    b = _aligned(predictions_a, predictions_b)
    samples = sample_of([predictions_a]), sample_of([b])
    measures, weights = measures_of(b.probability), settings.draw(samples[0])
    result: dict[str, Any] = {
        **settings.describe(),
        "n": len(b),
        "patients": len(samples[0].patient_label),
        "thresholds": {"a": predictions_a.threshold, "b": b.threshold}
        if len(b.class_names) == 2
        else None,
    }
    for unit, names, measure, draw in (
        ("image", measures.names, image_metrics, image_values),
        ("patient", measures.patient_names, patient_metrics, patient_values),
    ):
        points = measure(predictions_a), measure(b)
        drawn = draw(samples[0], weights), draw(samples[1], weights)
        rows: dict[str, Any] = {}
        undefined: dict[str, str] = {}
        for name in names:
            reasons = [point["undefined"].get(name, "") for point in points]
            basis = measures.basis(samples[0], name, b.class_names)
            reasons.append(basis.reason)
            values = drawn[1][name] - drawn[0][name]
            row = None if any(reasons) else _row(points, name, values, settings, basis)
            if row and row["low"] is None:
                reasons.append("it exists for both in too few resamples")
                row = None
            rows[name] = row
            if row is None:
                undefined[name] = next(filter(None, reasons))
        result[unit] = {**rows, "undefined": undefined}
    return result


def p_value(differences: np.ndarray, basis: Basis) -> float:
    """Two-sided bootstrap p-value: how far into the resamples 0 lies, counted from either end.

    One is added to the counts, because no number of resamples can show that something never
    happens. For few patients the share is made larger as `Settings.tail` makes intervals wider,
    so that p falls below 1 − level where the interval leaves 0 out.
    """
    exist = differences[np.isfinite(differences)]
    # Equal counts on both sides must come out equal; rounding leaves 1e-17 where there is 0.
    tiny = 1e-12
    tail = min(np.sum(exist <= tiny), np.sum(exist >= -tiny))
    share = min(0.5, (tail + 1) / (len(exist) + 1))
    patients = basis.patients
    if patients > 1:
        shrinking = np.sqrt((patients - 1) / patients)
        freedom = patients - 1 if basis.freedom is None else basis.freedom
        share = stats.t.cdf(shrinking * stats.norm.ppf(share), freedom)
    return float(2 * share)


def comparison_table(result: Mapping[str, Any], name_a: str = "A", name_b: str = "B") -> str:
    """The comparison as text, for a terminal."""
    level = f"{result['level']:.0%}"
    units = {
        unit: [name for name in result[unit] if name != "undefined"]
        for unit in ("image", "patient")
    }
    called = {side: "likeliest class" for side in "ab"}
    if result["thresholds"]:
        called = {side: f"threshold {result['thresholds'][side]:.3g}" for side in "ab"}
    lines = [
        f"A  {name_a}  ({called['a']})",
        f"B  {name_b}  ({called['b']})",
        f"{result['n']} images of {result['patients']} patients; {result['resamples']} resamples "
        f"of patients, stratified by class, seed {result['seed']}",
    ]
    width = max(map(len, units["patient"]))
    for unit, names in units.items():
        title = f"{unit} level"
        lines += [
            "",
            f"{title:<{width}}  {'A':>7}{'B':>7}{'B − A':>8}   {level + ' interval':<17}p",
        ]
        reasons: dict[str, list[str]] = {}
        for name in names:
            row = result[unit][name]
            if row is None:
                reasons.setdefault(result[unit]["undefined"][name], []).append(name)
                continue
            span = f"{row['low']:+.3f} to {row['high']:+.3f}"
            lines.append(
                f"{name:<{width}}  {row['a']:7.3f}{row['b']:7.3f}{row['difference']:+8.3f}   "
                f"{span:<17}{row['p']:.4f}"
            )
        lines += [f"– no {', '.join(which)}: {reason}" for reason, which in reasons.items()]
    lines += [
        "",
        f"{sum(map(len, units.values()))} comparisons: p is not corrected for that.",
    ]
    return "\n".join(lines) + "\n"


def _row(
    points: tuple[Mapping[str, Any], Mapping[str, Any]],
    name: str,
    values: np.ndarray,
    settings: Settings,
    basis: Basis,
) -> dict[str, Any]:
    a, b = points[0][name], points[1][name]
    return {
        "a": a,
        "b": b,
        "difference": b - a,
        **settings.interval(values, basis),
        "p": p_value(values, basis),
    }


def _aligned(a: Predictions, b: Predictions) -> Predictions:
    """B in A's order."""
    only_a, only_b = np.setdiff1d(a.file, b.file), np.setdiff1d(b.file, a.file)
    if len(only_a) or len(only_b):
        example = [*only_a, *only_b][0]
        raise InputError(
            f"the two tables are not of the same images: {len(only_a)} only in A, {len(only_b)} "
            f"only in B (such as '{example}'); compare networks on one test set"
        )
    if a.class_names != b.class_names:
        raise InputError(
            f"the two tables have other classes: {a.class_names} in A, {b.class_names} in B"
        )
    b = b.select(np.argsort(b.file)[np.argsort(np.argsort(a.file))])
    for name in ("label", "patient"):
        differ = np.flatnonzero(getattr(a, name) != getattr(b, name))
        if len(differ):
            i = differ[0]
            raise InputError(
                f"the two tables disagree on the {name} of {len(differ)} images: '{a.file[i]}' is "
                f"'{getattr(a, name)[i]}' in A and '{getattr(b, name)[i]}' in B"
            )
    return b
