"""Networks on the same test images: how much they differ, and whether that could be chance."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from densenet_flax.common.errors import InputError, printable
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
from densenet_flax.evaluation.metrics.intervals import sample_intervals
from densenet_flax.evaluation.metrics.levels import level_metrics, metric_set
from densenet_flax.evaluation.metrics.pseudo_patients import FROM_MINUS_ONE
from densenet_flax.evaluation.metrics.sample import sample_of
from densenet_flax.evaluation.predictions import Predictions

METHOD = (
    "paired over patients: Student's t of the jackknifed difference, stratified by class, with no "
    "more degrees of freedom than the patients who carry it"
)
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
    tables = predictions_a, _align(predictions_a, predictions_b, ("A", "B"))
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
        result[key] = _differences(bootstrap.tail, networks, names, strata, reason)
    return result


def compare_networks(
    tables: Mapping[str, Predictions],
    baseline: str = "",
    metric: str = "",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> JsonDict:
    """Compares any number of networks on the same test images, paired by patient.

    Over the pairs of networks, but not over the metrics, the intervals of differences hold together
    (Bonferroni) and p-values are corrected (Holm, Scandinavian Journal of Statistics 6(2), 1979).
    So a verdict is about one metric, chosen before the results were seen.

    Args:
      tables: By the names of the networks. The order of their images may differ; each keeps its
        own threshold.
      baseline: Compares every other network with this one, instead of every pair.
      metric: Of the verdict; by default the area under the ROC curve. It is that of patients where
        each has one class.
      resamples: Of the intervals of each network; so is `seed`.
      seed: See resamples.
      level: Of all intervals.

    Returns:
      'networks' (metrics and intervals of each), 'pairs' ('a', 'b', and under 'image' and 'patient'
      what `compare` returns, with 'p_corrected'), 'metric', and how they were made.

    Raises:
      InputError: There is only one table, they are not of the same images, patients and classes, or
        there is no such network or metric.
    """
    samples = {name: sample_of(table) for name, table in align(tables).items()}
    names, first = [*tables], next(iter(tables.values()))
    if baseline and baseline not in tables:
        raise InputError(f"compare: there is no network {baseline!r}; expected one of {names}")
    class_names, levels = first.class_names, metric_set(len(first.class_names)).levels
    points = {n: level_metrics(sample, class_names) for n, sample in samples.items()}
    verdict_metric = _verdict_metric(metric, len(class_names), list(points.values()))
    strata = merged_strata(samples[names[0]])
    influence = {n: level_influence(sample, strata) for n, sample in samples.items()}
    reason = _why_no_variance(samples[names[0]].patient.label, strata, class_names)

    others = [name for name in names if name != baseline]
    pairs = [(baseline, n) for n in others] if baseline else [*itertools.combinations(names, 2)]
    bootstrap = Bootstrap(resamples, seed, level)
    corrected = Bootstrap(resamples, seed, 1 - (1 - level) / len(pairs))
    rows: list[JsonDict] = []
    for pair in pairs:
        row: JsonDict = {"a": pair[0], "b": pair[1]}
        for key, metrics in levels.items():
            networks = [(points[n][key], influence[n][key]) for n in pair]
            row[key] = _differences(corrected.tail, networks, metrics, strata, reason)
        rows.append(row)
    for key, name in [(key, name) for key, metrics in levels.items() for name in metrics]:
        _correct([row[key][name] for row in rows if row[key][name]])
    return bootstrap.describe() | {
        "class_names": list(class_names),
        "n": len(first),
        "patients": samples[names[0]].patients,
        "method": METHOD,
        "correction": f"{len(pairs)} pairs: Bonferroni for intervals, Holm for p",
        "baseline": baseline or None,
        "metric": verdict_metric,
        "networks": [
            {
                "name": n,
                "threshold": tables[n].threshold if len(class_names) == 2 else None,
                **points[n],
                "intervals": sample_intervals(samples[n], class_names, bootstrap),
            }
            for n in names
        ],
        "pairs": rows,
    }


def _verdict_metric(metric: str, classes: int, points: Sequence[JsonDict]) -> JsonDict:
    """Its name and its level: patients, where that of each network exists."""
    levels = metric_set(classes).levels
    metric = metric or ("roc_auc" if classes == 2 else "macro_roc_auc")
    known = dict.fromkeys((*levels["image"], *levels["patient"]))
    if metric not in known:
        raise InputError(
            f"compare: there is no metric {metric!r}; expected one of {', '.join(known)}"
        )
    is_of_patients = all(point["patient"].get(metric) is not None for point in points)
    level = "patient" if is_of_patients or metric not in levels["image"] else "image"
    return {"level": level, "name": metric}


def _correct(rows: Sequence[JsonDict]) -> None:
    """Adds p-values after Holm's correction to the rows of one metric."""
    ascending = sorted(rows, key=lambda row: row["p"])
    largest = 0.0
    for i, row in enumerate(ascending):
        largest = max(largest, min(1.0, row["p"] * (len(rows) - i)))
        row["p_corrected"] = largest


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
    tail: float,
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
            change = influence_b[name] - influence_a[name]
            error = standard_error(change, strata, carried=True)
            if error is None or (error.value == 0 and abs(b - a) > _EQUAL):
                reason = "every patient differs by the same, which leaves no variance"
            else:
                # Two figures from 0 to 1, or from −1 to 1, differ by no more than that.
                largest = 2 if name in FROM_MINUS_ONE else 1
                low, high = np.clip(t_limits(b - a, error, tail), -largest, largest)
                interval = make_interval(low, high, "t")
                p = p_value(b - a, error)
                rows[name] = {"a": a, "b": b, "difference": b - a, **interval, "p": p}
        if reason:
            undefined[name] = reason
    return {**rows, "undefined": undefined}


def align(tables: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Returns the tables in the order of the first one's rows.

    Raises:
      InputError: There is only one, or they are not of the same images, patients and classes.
    """
    if len(tables) < 2:
        raise InputError("compare: expected two networks or more")
    (name, first), *others = tables.items()
    return {name: first} | {other: _align(first, b, (name, other)) for other, b in others}


def _align(a: Predictions, b: Predictions, names: tuple[str, str]) -> Predictions:
    """Returns B in A's order of rows; the names are those of both networks."""
    name_a, name_b = names
    only_a, only_b = np.setdiff1d(a.file, b.file), np.setdiff1d(b.file, a.file)
    if len(only_a) or len(only_b):
        example = [*only_a, *only_b][0]
        raise InputError(
            f"the two tables are not of the same images: {len(only_a)} only in {name_a}, "
            f"{len(only_b)} only in {name_b} (such as '{example}'); compare networks on one set"
        )
    if a.class_names != b.class_names:
        raise InputError(
            f"the two tables have other classes: {a.class_names} in {name_a}, {b.class_names} in "
            f"{name_b}"
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
                f"'{column_a[i]}' in {name_a} and '{column_b[i]}' in {name_b}"
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
    return "\n".join(map(printable, lines)) + "\n"


def networks_table(result: JsonDict) -> str:
    """Returns what `compare_networks` does as text, for a terminal: the metric of the verdict."""
    level, name = result["metric"]["level"], result["metric"]["name"]
    width = max(len(row["name"]) for row in result["networks"])
    lines = [f"{name} of {level}s, {result['n']} images of {result['patients']} patients", ""]
    for row in result["networks"]:
        value, span = row[level][name], row["intervals"][level][name]
        shown = "–" if value is None else f"{value:.3f}"
        ends = f"  {span['low']:.3f} to {span['high']:.3f}" if span else ""
        lines.append(f"{row['name']:<{width}}  {shown}{ends}")
    lines += ["", f"{'B − A':<{2 * width + 3}}  difference   interval          p"]
    for pair in result["pairs"]:
        row = pair[level][name]
        title = f"{pair['b']} − {pair['a']}"
        if row is None:
            reason = pair[level]["undefined"][name]
            lines.append(f"{title:<{2 * width + 3}}  – {reason}")
            continue
        ends = f"{row['low']:+.3f} to {row['high']:+.3f}"
        lines.append(
            f"{title:<{2 * width + 3}}  {row['difference']:+10.3f}   {ends:<17} "
            f"{row['p_corrected']:.4f}"
        )
    lines += ["", f"Intervals at {result['level']:.0%}. {result['correction']}."]
    return "\n".join(map(printable, lines)) + "\n"
