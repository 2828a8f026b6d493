"""What report.html shows, in the order a reader asks; the template says it in words."""

from collections.abc import Mapping
from dataclasses import dataclass

from densenet_flax.common.types import JsonDict
from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import calibration_tables, tables
from densenet_flax.evaluation.report.cautions import verdict
from densenet_flax.evaluation.report.views import (
    EmbeddedImage,
    KeyValues,
    Measured,
    Table,
    flat_items,
)
from densenet_flax.evaluation.report.wording import majority_class, metric_name, wording_for


@dataclass(frozen=True)
class SplitSection:
    """The training, validation and test images.

    Attributes:
      counts: images and patients of each subset and class.
      overlap: the groups of images that are in more than one subset.
      facts: whatever else the run states about its split.
    """

    counts: Table
    overlap: Table
    facts: KeyValues


@dataclass(frozen=True)
class RunSection:
    """What was run; every part may be empty."""

    details: KeyValues
    stages: list[str]
    seconds: KeyValues
    config: KeyValues
    versions: KeyValues


@dataclass(frozen=True)
class ReportPage:
    """Everything that report.html shows, from top to bottom."""

    title: str
    verdict: str
    summary: str
    tiles: list[tuple[str, Measured]]
    warnings: list[str]
    has_history: bool
    figures: list[EmbeddedImage]
    metrics: tables.MetricsSection
    by_class: tables.ClassSection | None
    calibration: calibration_tables.CalibrationSection
    by_magnification: Table
    by_subtype: Table
    by_patient: Table
    mistakes: tables.MistakesSection
    gallery: Mapping[str, list[EmbeddedImage]]
    gallery_note: str
    split: SplitSection
    run: RunSection


def report_page(
    metrics: JsonDict,
    predictions: Predictions,
    pngs: Mapping[str, bytes],
    gallery: Mapping[str, list[EmbeddedImage]],
) -> ReportPage:
    """Collects what the page shows.

    Args:
      metrics: as `assess` returns them, with 'warnings' and 'run'.
      predictions: of the test images, for the list of mistakes.
      pngs: the figures by name; 'curves' is missing if there was no training.
      gallery: images to look at, such as saliency maps, by heading.
    """
    run, wording = metrics["run"], wording_for(metrics)
    return ReportPage(
        title=str(run.get("title") or "Evaluation report"),
        verdict=verdict(metrics),
        summary=_summary(metrics),
        tiles=[
            (
                f"{metric_name(key)}, images" if level == "image" else metric_name(key),
                tables.level_metric(metrics, level, key),
            )
            for level, key in wording.tiles
        ],
        warnings=metrics["warnings"],
        has_history="curves" in pngs,
        figures=[
            EmbeddedImage(pngs[name], title, f"{title}. {text}")
            for name, (title, text) in wording.figures.items()
            if name in pngs
        ],
        metrics=tables.metrics_section(metrics),
        by_class=tables.class_section(metrics),
        calibration=calibration_tables.calibration_section(metrics),
        by_magnification=tables.by_magnification(metrics, wording.magnification_columns),
        by_subtype=tables.by_subtype(metrics),
        by_patient=tables.by_patient(metrics),
        mistakes=tables.mistakes_section(predictions),
        gallery=gallery,
        gallery_note=run.get("gallery_note") or "",
        split=_split(run.get("split") or {}),
        run=_run(run),
    )


def _summary(metrics: JsonDict) -> str:
    name, fraction = majority_class(metrics)
    baseline = f"Always predicting {name} would have an accuracy of {fraction:.2f}."
    positive, point = metrics["positive_class"], metrics["operating_point"]
    if positive is None:
        return f"{baseline} The likeliest of {len(metrics['class_names'])} classes is predicted."
    # A rule that could not be applied leaves 0.5, and a note is the only trace of it.
    has_rule = point and point["rule"] != "fixed"
    fell_back = has_rule and any(note.startswith("threshold left") for note in point["notes"])
    origin = ", chosen on validation images" if has_rule and not fell_back else ""
    return (
        f"{baseline} An image is classified as {positive} if P({positive}) is at least "
        f"{metrics['threshold']:.3g}{origin}."
    )


def subset_counts(split: JsonDict) -> Table:
    """Images and patients of each subset and class; without rows if they are not known."""
    rows = [
        [subset, name, count.get("images"), count.get("patients")]
        for subset, classes in (split.get("counts") or {}).items()
        for name, count in classes.items()
    ]
    return Table(["subset", "class", "images", "patients"], rows)


def _split(split: JsonDict) -> SplitSection:
    rest = {key: value for key, value in split.items() if key != "counts" and value is not None}
    overlap = Table([], [])
    # A list of rows becomes a table; another program may state the overlap as text.
    rows = rest.get("overlap")
    if isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
        del rest["overlap"]
        keys = list(rows[0]) if rows else []
        overlap = Table(
            [key.replace("_", " ") for key in keys],
            [[row.get(key) for key in keys] for row in rows],
            "Overlap between subsets",
        )
    yes_no = {
        key.replace("_", " "): {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else value
        for key, value in rest.items()
    }
    return SplitSection(subset_counts(split), overlap, flat_items(yes_no))


def _run(run: JsonDict) -> RunSection:
    details = {key: run[key] for key in ("weights", "device") if run.get(key)}
    return RunSection(
        details=flat_items(details),
        stages=[str(stage) for stage in run.get("stages") or []],
        seconds=[
            (name, "–" if value is None else f"{value:.1f}")
            for name, value in (run.get("seconds") or {}).items()
        ],
        config=flat_items(run.get("config") or {}),
        versions=flat_items(run.get("versions") or {}),
    )
