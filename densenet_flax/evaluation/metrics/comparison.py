"""Two networks on the same test images: the gain of the second, and whether it could be chance."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from densenet_flax.common.errors import InputError
from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.bootstrap import (
    LEVEL,
    RESAMPLES,
    Bootstrap,
    Strata,
    make_interval,
    merged_strata,
)
from densenet_flax.evaluation.metrics.influence import (
    level_influence,
    p_value,
    standard_error,
    t_limits,
)
from densenet_flax.evaluation.metrics.levels import level_metrics, metric_set
from densenet_flax.evaluation.metrics.sample import sample_of
from densenet_flax.evaluation.predictions import Predictions

METHOD = "paired over patients: Student's t of the jackknifed difference, stratified by class"
_EQUAL = 1e-9  # a difference that is rounding


def compare(
    predictions_a: Predictions,
    predictions_b: Predictions,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> JsonDict:
    """Computes the difference of every metric, B minus A, paired by patient.

    A is the network to beat. B is of the same images, whose order may differ. Each table keeps its
    own threshold. The level is that of the intervals; nothing is resampled, and `resamples` and
    `seed` are only checked.

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
    strata = merged_strata(samples[0])
    influence = [level_influence(sample, strata) for sample in samples]
    result = bootstrap.describe() | {"n": len(predictions_a), "patients": samples[0].patients}
    result["method"] = METHOD
    thresholds = {"a": tables[0].threshold, "b": tables[1].threshold}
    result["thresholds"] = thresholds if binary else None
    reason = _why_no_variance(samples[0].patient.label, strata, class_names)
    for key, names in metric_set(len(class_names)).levels.items():
        networks = [(p[key], v[key]) for p, v in zip(points, influence, strict=True)]
        result[key] = _differences(bootstrap, networks, names, strata, reason)
    return result


def _why_no_variance(
    label: Int[np.ndarray, " P"], strata: Strata, class_names: Sequence[str]
) -> str:
    """The reason if patients of a class cannot differ from each other, or ''."""
    single = np.flatnonzero(strata.sizes == 1)
    if not len(single):
        return ""
    k = label[strata.index == single[0]][0]
    kind = "with images of several classes" if k < 0 else class_names[k]
    patient = f"patient {kind}" if k < 0 else f"{kind} patient"
    return f"only one {patient}, and one does not show how patients differ"


def _differences(
    bootstrap: Bootstrap,
    networks: Sequence[tuple[JsonDict, Mapping[str, Float[np.ndarray, "P *K"]]]],
    names: Sequence[str],
    strata: Strata,
    no_variance: str,
) -> JsonDict:
    """The differences of one level, from the point estimates and influences of both networks."""
    (points_a, influence_a), (points_b, influence_b) = networks
    # Where neither network has a metric, the reason is A's.
    missing = points_b["undefined"] | points_a["undefined"]
    rows: JsonDict = {}
    undefined: dict[str, str] = {}
    for name in names:
        reason = missing.get(name) or no_variance
        rows[name] = None
        if not reason:
            a, b = points_a[name], points_b[name]
            # Patient by patient, so that what both networks find hard cancels.
            error = standard_error(influence_b[name] - influence_a[name], strata)
            if error is None or (error.value == 0 and abs(b - a) > _EQUAL):
                reason = "every patient differs by the same, which leaves no variance"
            else:
                low, high = t_limits(b - a, error, bootstrap.tail)
                interval = make_interval(low, high, "t")
                p = p_value(b - a, error)
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
        f"{result['n']} images of {result['patients']} patients; intervals {result['method']}",
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
