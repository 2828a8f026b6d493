"""The report's tables that only more than two classes have."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import page
from densenet_flax.evaluation.report.tables import MISTAKES, measured
from densenet_flax.evaluation.report.wording import CLASS_COLUMNS


def by_class(metrics: Mapping[str, Any]) -> Iterator[str]:
    """A row per class, each against the rest; nothing of two classes."""
    if "by_class" not in metrics:
        return
    rows = []
    reasons: dict[str, list[str]] = {}
    for row, span in zip(metrics["by_class"], metrics["intervals"]["by_class"], strict=True):
        name = row["class"].replace("_", " ")
        cells = [measured(row, span, key) for key in CLASS_COLUMNS]
        rows.append([name, *cells, row["n"], row["called"], row["patients"]])
        for key, reason in {**span["undefined"], **row["undefined"]}.items():
            kind = "" if row[key] is None else "interval of "
            reasons.setdefault(reason, []).append(f"{kind}{CLASS_COLUMNS[key]} ({name})")
    header = ["class", *CLASS_COLUMNS.values(), "images", "called", "patients"]
    yield page.table(header, rows)
    yield page.paragraph(
        "Each class against the rest, on images. Below each number its interval over patients; "
        "'called' is the number of images called that, right or wrong.",
        "soft",
    )
    if reasons:
        lines = (f"{reason}, so no {', '.join(which)}" for reason, which in reasons.items())
        yield page.folded("What does not exist, and why", page.bullets(lines))


def mistakes(predictions: Predictions) -> str:
    """The wrong images that the network was surest of."""
    wrong = np.flatnonzero(predictions.prediction != predictions.label)
    if not len(wrong):
        return page.paragraph("None: every image is right.")
    surest = predictions.probability.max(axis=1)[wrong]
    worst = wrong[np.argsort(-surest, kind="stable")][:MISTAKES]
    names = [name.replace("_", " ") for name in predictions.class_names]
    return page.paragraph(
        f"{len(worst)} of {len(wrong)} wrong images; all are in predictions.csv.", "soft"
    ) + page.table(
        ["file", "called", "P(called)", "true class", "P(true)", "patient", "magnification"],
        [
            [
                str(predictions.file[i]),
                names[predictions.prediction[i]],
                float(predictions.probability[i].max()),
                names[predictions.label[i]],
                float(predictions.probability[i, predictions.label[i]]),
                str(predictions.patient[i]),
                f"{predictions.magnification[i]}×" if predictions.magnification[i] else None,
            ]
            for i in worst
        ],
    )
