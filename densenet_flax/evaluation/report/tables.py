"""The tables of the page and the card: metrics, groups of images, mistakes, calibration, split."""

from collections.abc import Mapping, Sequence

import numpy as np

from densenet_flax.common.trees import JsonDict
from densenet_flax.evaluation.metrics.levels import ACCURACY_BY_MEAN
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report.views import Cell, Measured, Table, measured
from densenet_flax.evaluation.report.wording import (
    CLASS_COLUMNS,
    RECOGNITION_RATE,
    count,
    metric_name,
    metric_title,
    wording_for,
)

_MAX_MISTAKES = 10
# Before and after temperature scaling, as keys of metrics.json and in words.
_STATES = (("before", "uncalibrated"), ("after", "calibrated"))


def key_figures(metrics: JsonDict) -> list[tuple[str, Measured]]:
    """Name and value of the numbers at the top of the page."""
    return [
        *(
            (f"{metric_name(key)}, patients", level_metric(metrics, "patient", key))
            for key in wording_for(metrics).key_figures
        ),
        *(
            (metric_name(key), level_metric(metrics, "patient", key))
            for key in (ACCURACY_BY_MEAN, RECOGNITION_RATE)
        ),
        ("accuracy, images", level_metric(metrics, "image", "accuracy")),
    ]


def all_metrics(metrics: JsonDict) -> Table:
    """A row per metric, of images and of patients."""
    negative, positive = metrics["class_names"][:2]
    rows: list[list[Cell]] = [
        [
            metric_title(key),
            level_metric(metrics, "patient", ACCURACY_BY_MEAN if key == "accuracy" else key),
            level_metric(metrics, "image", key),
            meaning.format(negative=negative, positive=positive),
        ]
        for key, meaning in wording_for(metrics).metrics.items()
    ]
    meaning = "mean over patients of the fraction of their images classified correctly"
    rate = level_metric(metrics, "patient", RECOGNITION_RATE)
    rows.append([metric_title(RECOGNITION_RATE), rate, Measured(None), meaning])
    return Table(["metric", "patients by mean probability", "images", "meaning"], rows)


def clinic(metrics: JsonDict) -> Table:
    """Predictive values by prevalence and sensitivity by specificity, of patients and images."""
    levels = metrics.get("clinic") or {}
    columns = [_clinic_column(levels.get(level)) for level in ("patient", "image")]
    titles = dict.fromkeys(title for column in columns for title in column)
    rows = [[title, *(column.get(title) for column in columns)] for title in titles]
    return Table(["", "patients by mean probability", "images"], rows)


def _clinic_column(level: JsonDict | None) -> dict[str, Measured]:
    cells: dict[str, Measured] = {}
    if level is None:
        return cells
    for name in ("ppv", "npv"):
        for row in level["predictive_values"]:
            # Of patients it may be another one than of images.
            stated = f"prevalence {row['prevalence']:.0%}"
            where = "the prevalence of these cases" if row["own"] else stated
            span = row[f"{name}_interval"] or {}
            value = Measured(row[name], span.get("low"), span.get("high"))
            cells[f"{name.upper()} at {where}"] = value
    for row in level["sensitivity_at_specificity"]:
        span = row["interval"]
        value = Measured(row["sensitivity"], span["low"], span["high"])
        cells[f"Sensitivity at specificity {row['specificity']:.0%}"] = value
    return cells


def level_metric(metrics: JsonDict, level: str, key: str) -> Measured:
    """A metric of all images (level 'image') or patients ('patient'), with its interval."""
    return measured(metrics[level], metrics["intervals"][level], key)


def undefined_metrics(metrics: JsonDict) -> list[str]:
    """Lists by reason the metrics that do not exist."""
    reasons: dict[str, list[str]] = {}  # few reasons, many metrics
    for level in ("image", "patient"):
        for key, reason in metrics[level]["undefined"].items():
            name = "accuracy" if key == ACCURACY_BY_MEAN else metric_name(key)
            reasons.setdefault(f"{level}s: {reason}", []).append(name)
    return _sentences(reasons)


def _sentences(reasons: Mapping[str, list[str]]) -> list[str]:
    return [f"{reason}, so no {', '.join(names)}" for reason, names in reasons.items()]


def by_class(metrics: JsonDict) -> Table:
    """A row per class, each against the rest; without rows if there are two classes."""
    return Table.from_records(
        [
            {
                "class": _spaced(row["class"]),
                "images": row["n"],
                "predicted": row["called"],
                "patients": row["patients"],
                **{metric_name(key): measured(row, intervals, key) for key in CLASS_COLUMNS},
            }
            for row, intervals in _classes(metrics)
        ]
    )


def undefined_by_class(metrics: JsonDict) -> list[str]:
    """Lists by reason the metrics of a class, and the intervals, that do not exist."""
    reasons: dict[str, list[str]] = {}
    for row, intervals in _classes(metrics):
        for key, reason in {**intervals["undefined"], **row["undefined"]}.items():
            kind = "" if row[key] is None else "interval of "
            name = f"{kind}{metric_name(key)} ({_spaced(row['class'])})"
            reasons.setdefault(reason, []).append(name)
    return _sentences(reasons)


def _classes(metrics: JsonDict) -> list[tuple[JsonDict, JsonDict]]:
    """The metrics of each class, and their intervals."""
    rows = metrics.get("by_class", [])
    return list(zip(rows, metrics["intervals"]["by_class"], strict=True)) if rows else []


def by_magnification(metrics: JsonDict, columns: Sequence[str]) -> Table:
    """A row per magnification, with these metrics; without rows if no magnification is known."""
    groups = metrics["by_magnification"]
    if not any(row["magnification"] for row in groups):
        return Table([], [])
    return Table.from_records(
        [
            {
                "magnification": magnification(row["magnification"]) or "unknown",
                "images": row["n"],
                "patients": row["patients"],
                **_group_metrics(row, intervals, columns),
            }
            for row, intervals in zip(groups, metrics["intervals"]["by_magnification"], strict=True)
        ]
    )


def by_subtype(metrics: JsonDict) -> Table:
    """A row per subtype; without rows if the subtypes are the classes."""
    intervals = {row["subtype"]: row for row in metrics["intervals"]["by_subtype"]}
    return Table.from_records(
        [
            {
                "subtype": _spaced(row["subtype"]),
                **_group_metrics(row, intervals[row["subtype"]], ("accuracy", RECOGNITION_RATE)),
                "correct images": f"{row['correct']}/{row['n']}",
                "patients": row["patients"],
                wording_for(metrics).mean_probability: row["mean_probability"],
                "class": row["class"],
            }
            for row in metrics["by_subtype"]
        ]
    )


def _group_metrics(row: JsonDict, intervals: JsonDict, keys: Sequence[str]) -> dict[str, Measured]:
    """Metrics of a group of images, among them the one of patients that is shown."""
    rate = {RECOGNITION_RATE: intervals["patient"][RECOGNITION_RATE]}
    return {metric_name(key): measured(row, intervals["image"] | rate, key) for key in keys}


def by_patient(metrics: JsonDict) -> Table:
    """A row per patient, the worst first."""
    return Table.from_records(
        [
            {
                "patient": row["patient"],
                "accuracy": row["accuracy"],
                "correct images": f"{row['correct']}/{row['n']}",
                wording_for(metrics).mean_probability: row["mean_probability"],
                "class": row["class"],
                "subtype": _spaced(", ".join(row["subtypes"])) or None,
            }
            for row in sorted(metrics["by_patient"], key=lambda row: row["accuracy"])
        ]
    ).without_empty_columns()


def mistakes(predictions: Predictions) -> Table:
    """The wrong images of which the network was most confident."""
    label, probability = predictions.label, predictions.probability
    names = np.array([_spaced(name) for name in predictions.class_names])
    columns: dict[str, np.ndarray] = {"file": predictions.file}
    if len(names) == 2:
        # P(positive) of a negative image, 1 − P(positive) of a positive one.
        confidence = np.abs(probability - label)
        columns |= {f"P({predictions.class_names[1]})": probability}
    else:
        confidence = probability.max(axis=1)
        columns |= {"predicted": names[predictions.prediction], "P(predicted)": confidence}
    columns["true class"] = names[label]
    if len(names) > 2:
        columns["P(true class)"] = probability[np.arange(len(label)), label]
    columns["patient"] = predictions.patient
    columns["magnification"] = np.array([magnification(m) for m in predictions.magnification])
    wrong = np.flatnonzero(predictions.prediction != label)
    # Stable, so that equally confident ones stay in the order of the table.
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MAX_MISTAKES]
    rows = list(zip(*(values[worst].tolist() for values in columns.values()), strict=True))
    return Table(list(columns), rows).without_empty_columns()


def calibration_scores(metrics: JsonDict) -> Table:
    """Brier score, log-loss and calibration errors of the test and the validation images."""
    calibration, columns = metrics["calibration"], wording_for(metrics).calibration_columns
    rows: list[dict[str, Cell]] = []
    for subset, name in (
        ("test", "test images"),
        ("patients", "means of test patients"),
        ("validation", "validation images, on which the temperature was fitted"),
    ):
        # Validation images have no intervals: the temperature was fitted to them.
        scores = calibration.get(subset) or {}
        intervals = scores.get("intervals", {})
        for state, probability in _STATES:
            if scores.get(state):
                state_intervals = {key: intervals.get(f"{key}_{state}") for key in columns}
                values = {key: scores[state].get(key) for key in columns}
                cells = {t: measured(values, state_intervals, key) for key, t in columns.items()}
                rows.append({"": name, "probability": probability, **cells})
    return Table.from_records(rows)


def calibration_bins(metrics: JsonDict) -> list[Table]:
    """The bins of the test images, before and after temperature scaling."""
    test = metrics["calibration"]["test"]
    # P(positive) if there are two classes, else the probability of the likeliest class.
    event, key = (
        ("positive", "bins") if metrics["positive_class"] else ("correct", "bins_top_label")
    )
    return [
        Table.from_records(
            [
                {
                    "bin": f"{row['lower_edge']:.3f} to {row['upper_edge']:.3f}",
                    "images": row["count"],
                    "mean probability": row["confidence"],
                    f"fraction that is {event}": Measured(
                        row["accuracy"], *(row["accuracy_interval"] or ())
                    ),
                }
                for row in test[state][key]
            ],
            caption,
        )
        for state, caption in _STATES
        if test[state]
    ]


def flow_of_cases(run: JsonDict) -> Table:
    """Files left out and why, images, and the subsets by class; without rows if nothing is known.

    Args:
      run: 'run' of metrics.json, of which 'split' and 'data' are read.
    """
    data = run.get("data") or {}
    counts = (run.get("split") or {}).get("counts") or {}
    classes = data.get("classes") or []
    names = [row["class"] for row in classes] or list(
        dict.fromkeys(n for c in counts.values() for n in c)
    )
    rows: list[list[Cell]] = [
        [f"files left out: {reason}", number, *[None] * len(names)]
        for reason, number in (data.get("left_out") or {}).items()
    ]
    if classes:
        total = sum(row["images"] for row in classes)
        title = (
            f"all, of {count(data['patients'], 'patient')}" if data.get("patients_from") else "all"
        )
        rows.append([title, total, *[row["images"] for row in classes]])
    for subset, by_name in counts.items():
        cells = [by_name.get(name) or {} for name in names]
        images = [cell.get("images") or 0 for cell in cells]
        rows.append([subset, sum(images), *map(_of_patients, cells)])
    used = sum(row.get("images") or 0 for by_name in counts.values() for row in by_name.values())
    if classes and counts and total > used:
        rows.append(["in no subset", total - used, *[None] * len(names)])
    return Table(["", "images", *map(_spaced, names)], rows)


def _of_patients(cell: JsonDict) -> Cell:
    if not cell.get("images") or cell.get("patients") is None:
        return cell.get("images")
    return f"{cell['images']} of {count(cell['patients'], 'patient')}"


def split_facts(split: JsonDict) -> tuple[JsonDict, Table]:
    """What a run states about its split apart from the counts, and its overlap as a table.

    The overlap is the groups of images that are in more than one subset.
    """
    facts = {key: value for key, value in split.items() if key != "counts" and value is not None}
    overlap: list[JsonDict] = []
    # A list of rows becomes a table; another program may state the overlap as text.
    rows = facts.get("overlap")
    if isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
        overlap = [{_spaced(key): cell for key, cell in row.items()} for row in rows]
        del facts["overlap"]
    for key, value in facts.items():
        if isinstance(value, bool):
            facts[key] = "yes" if value else "no"
    return (
        {_spaced(key): value for key, value in facts.items()},
        Table.from_records(overlap, "Overlap between subsets"),
    )


def magnification(value: int) -> str | None:
    """'40×'; None if it is not known."""
    return f"{value}×" if value else None


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def features(metrics: JsonDict) -> Table:
    """How much the features tell of patients and of classes, beside chance."""
    rows = {
        "patient": "nearest image is of the same patient (by chance: among images of the class)",
        "class": "nearest image of another patient is of the same class",
    }
    values = metrics.get("features") or {}
    records: list[dict[str, Cell]] = [
        {
            "": text,
            "share of images": values[key]["accuracy"],
            "by chance": values[key]["chance"],
            "images": values[key]["images"],
        }
        for key, text in rows.items()
        if key in values
    ]
    return Table.from_records(records)
