"""The report's section on threshold and calibration."""

from dataclasses import dataclass

from densenet_flax.common.types import JsonDict
from densenet_flax.evaluation.report.views import Cell, KeyValues, Measured, Table, measured

# Before and after temperature scaling, as keys of metrics.json and in words.
_STATES = (("before", "uncalibrated"), ("after", "calibrated"))


@dataclass(frozen=True)
class CalibrationSection:
    """How well the probabilities mean what they say.

    Attributes:
      positive: name of the positive class; None if there are more than two classes.
      threshold: as text; '' if there are more than two classes.
      operating_point: how threshold and temperature were chosen; empty if they were given.
      scores: Brier score, log-loss and calibration errors.
      bins: how many there are.
      bin_tables: the bins of the test images, before and after temperature scaling.
    """

    positive: str | None
    threshold: str
    operating_point: KeyValues
    scores: Table
    bins: int
    bin_tables: list[Table]


def calibration_section(metrics: JsonDict) -> CalibrationSection:
    """The operating point, the scores and the bins."""
    calibration, positive = metrics["calibration"], metrics["positive_class"]
    return CalibrationSection(
        positive=positive,
        threshold=f"{metrics['threshold']:.3g}" if positive else "",
        operating_point=_operating_point(metrics["operating_point"], positive),
        scores=_scores(calibration, positive),
        bins=calibration["bins"],
        bin_tables=[
            _bins(calibration["test"][state], caption)
            for state, caption in _STATES
            if calibration["test"][state]
        ],
    )


def _operating_point(point: JsonDict | None, positive: str | None) -> KeyValues:
    if point is None:
        return []
    threshold = (
        f"{point['threshold']:.4g} on the uncalibrated P({positive}), equivalent to "
        f"{point['calibrated_threshold']:.4g} calibrated"
        if positive
        else ""
    )
    return [
        *([("threshold", threshold)] if threshold else []),
        ("rule", point["rule"]),
        ("temperature", f"{point['temperature']:.4g}"),
        ("chosen on", point["chosen_on"] or "no images: defaults"),
    ]


def _scores(calibration: JsonDict, positive: str | None) -> Table:
    rows: list[list[Cell]] = []
    for subset, name in (("test", "test"), ("validation", "validation (temperature fitted here)")):
        for state, probability in _STATES:
            values = (calibration[subset] or {}).get(state)
            if not values:
                continue
            # Validation images have no intervals: the temperature was fitted to them.
            all_intervals = calibration[subset].get("intervals", {})
            intervals = {key: all_intervals.get(f"{key}_{state}") for key in ("brier", "nll")}
            rows.append(
                [
                    name,
                    probability,
                    *(measured(values, intervals, key) for key in ("brier", "nll")),
                    # Without intervals: resampling makes the bias of an ECE larger.
                    *(values[key] for key in ("ece", "ece_top_label") if key in values),
                ]
            )
    header = ["images", "probability", "Brier score"]
    header += ["NLL", "ECE", "ECE, likelier class"] if positive else ["log-loss", "ECE"]
    return Table(header, rows)


def _bins(values: JsonDict, caption: str) -> Table:
    # P(positive) if there are two classes, else the probability of the likeliest class.
    event = "positive" if "bins" in values else "correct"
    rows = [
        [
            f"{row['lower_edge']:.3f} to {row['upper_edge']:.3f}",
            row["count"],
            row["confidence"],
            Measured(row["accuracy"], *(row["accuracy_interval"] or ())),
        ]
        for row in values.get("bins") or values["bins_top_label"]
    ]
    return Table(["bin", "images", "mean probability", f"fraction that is {event}"], rows, caption)
