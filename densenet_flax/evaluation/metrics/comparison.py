"""Two networks on the same test images: the gain of the second, and whether it could be chance."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.bootstrap import (
    LEVEL,
    RESAMPLES,
    Basis,
    Bootstrap,
    basis_of,
    p_value,
)
from densenet_flax.evaluation.metrics.levels import level_metrics, level_values, metric_set
from densenet_flax.evaluation.metrics.sample import sample_of
from densenet_flax.evaluation.predictions import Predictions


def compare(
    predictions_a: Predictions,
    predictions_b: Predictions,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> JsonDict:
    """Computes the difference of every metric, B minus A, on the same resamples of the patients.

    A is the network to beat. B is of the same images, whose order may differ. Each table keeps its
    own threshold; resamples, seed and level are those of `Bootstrap`.

    Returns:
      Under 'image' and 'patient' and the name of each metric its 'a', 'b', 'difference', interval
      and 'p', or None and the reason under 'undefined'; and how they were made.

    Raises:
      InputError: The tables are not of the same images, patients and classes.
    """
    bootstrap, class_names = Bootstrap(resamples, seed, level), predictions_a.class_names
    binary = len(class_names) == 2
    tables = predictions_a, _align(predictions_a, predictions_b)
    samples = [sample_of(table) for table in tables]
    points = [level_metrics(sample, class_names) for sample in samples]
    weights = bootstrap.draw(samples[0])
    values = [level_values(sample, weights) for sample in samples]
    result = bootstrap.describe() | {"n": len(predictions_a), "patients": samples[0].patients}
    thresholds = {"a": tables[0].threshold, "b": tables[1].threshold}
    result["thresholds"] = thresholds if binary else None
    for key, names in metric_set(len(class_names)).levels.items():
        bases = {name: basis_of(samples[0], name, class_names) for name in names}
        networks = zip(points, values, strict=True)
        result[key] = _differences(bootstrap, [(p[key], v[key]) for p, v in networks], bases)
    return result


def _differences(
    bootstrap: Bootstrap,
    networks: Sequence[tuple[JsonDict, Mapping[str, Float[np.ndarray, "R *K"]]]],
    bases: Mapping[str, Basis],
) -> JsonDict:
    """The differences of one level, from the point estimates and the resamples of both networks."""
    (points_a, values_a), (points_b, values_b) = networks
    # Where neither network has a metric, the reason is A's.
    missing = points_b["undefined"] | points_a["undefined"]
    rows: JsonDict = {}
    undefined: dict[str, str] = {}
    for name, basis in bases.items():
        reason = missing.get(name) or basis.reason
        rows[name] = None
        if not reason:
            a, b = points_a[name], points_b[name]
            # Resample by resample, so that what both networks find hard cancels.
            differences = values_b[name] - values_a[name]
            interval = bootstrap.interval(differences, basis)
            if interval["low"] is None:
                reason = "it exists for both in too few resamples"
            else:
                p = p_value(differences, basis)
                rows[name] = {"a": a, "b": b, "difference": b - a, **interval, "p": p}
        if reason:
            undefined[name] = reason
    return {**rows, "undefined": undefined}


def _align(a: Predictions, b: Predictions) -> Predictions:
    """Returns B in A's order of rows."""
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
    # The files are the same, so equal ranks among the sorted names are equal files.
    rank_in_a = np.argsort(np.argsort(a.file))
    b = b.select(np.argsort(b.file)[rank_in_a])
    for name in ("label", "patient"):
        column_a, column_b = getattr(a, name), getattr(b, name)
        differ = np.flatnonzero(column_a != column_b)
        if len(differ):
            i = differ[0]
            raise InputError(
                f"the two tables disagree on the {name} of {len(differ)} images: '{a.file[i]}' is "
                f"'{column_a[i]}' in A and '{column_b[i]}' in B"
            )
    return b


def comparison_table(result: JsonDict, name_a: str = "A", name_b: str = "B") -> str:
    """Returns the comparison as text, for a terminal."""
    if result["thresholds"]:
        rules = [f"threshold {value:.3g}" for value in result["thresholds"].values()]
    else:
        rules = ["likeliest class"] * 2
    lines = [
        f"A  {name_a}  ({rules[0]})",
        f"B  {name_b}  ({rules[1]})",
        f"{result['n']} images of {result['patients']} patients; {result['resamples']} resamples "
        f"of patients, stratified by class, seed {result['seed']}",
    ]
    interval_title = f"{result['level']:.0%} interval"
    width = max(map(len, result["patient"]))
    comparisons = 0
    for level in ("image", "patient"):
        title, metrics = f"{level} level", result[level]
        lines += ["", f"{title:<{width}}  {'A':>7}{'B':>7}{'B − A':>8}   {interval_title:<17}p"]
        names_by_reason: dict[str, list[str]] = {}
        for name, row in metrics.items():
            if name == "undefined":
                continue
            comparisons += 1
            if row is None:
                names_by_reason.setdefault(metrics["undefined"][name], []).append(name)
                continue
            span = f"{row['low']:+.3f} to {row['high']:+.3f}"
            lines.append(
                f"{name:<{width}}  {row['a']:7.3f}{row['b']:7.3f}{row['difference']:+8.3f}   "
                f"{span:<17}{row['p']:.4f}"
            )
        lines += [f"– no {', '.join(names)}: {why}" for why, names in names_by_reason.items()]
    lines += ["", f"{comparisons} comparisons: p is not corrected for that."]
    return "\n".join(lines) + "\n"
