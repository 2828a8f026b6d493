"""What report.html says, in the order a reader asks.

How good, how far to trust it, how it came about, where it fails, and what exactly was run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from densenet_flax.evaluation.predictions import Predictions
from densenet_flax.evaluation.report import calibration_tables, class_tables, page, tables
from densenet_flax.evaluation.report.gallery import Picture
from densenet_flax.evaluation.report.page import Measured
from densenet_flax.evaluation.report.wording import class_totals, wording_of

FOOTER = "Research use only, not for diagnosis."


def report_page(
    verdict: str,
    metrics: Mapping[str, Any],
    predictions: Predictions,
    history: Sequence[Mapping[str, Any]],
    pngs: Mapping[str, bytes],
    gallery: Sequence[Picture] = (),
) -> str:
    """The whole page.

    Args:
        verdict: The sentence at the top.
        metrics: As `assess` returns them, with 'warnings' and 'run'.
        predictions: For the list of mistakes.
        history: One mapping per epoch; may be empty.
        pngs: Pictures by file name.
        gallery: Images to look at, such as overlays of what the network looked at.
    """
    run = metrics["run"]
    title = str(run.get("title") or "Evaluation report")
    parts = [
        page.heading(title, verdict),
        page.paragraph(_second_sentence(metrics), "soft"),
        page.tiles(_tiles(metrics)),
        page.warnings(metrics["warnings"]),
        page.section("In pictures", _pictures(metrics, history, pngs)),
        page.section("All metrics", *tables.all_metrics(metrics)),
        page.section("By class", *class_tables.by_class(metrics)),
        page.section(_calibration_title(metrics), *calibration_tables.calibration(metrics)),
        page.section("By magnification", tables.by_magnification(metrics)),
        page.section("By subtype", tables.by_subtype(metrics)),
        page.section("By patient", tables.by_patient(metrics)),
        page.section("Most confident mistakes", _mistakes(predictions)),
        page.section("Gallery", *_gallery(gallery, run.get("gallery_note"))),
        page.section("Training and test data", *_split(run.get("split") or {})),
        page.section("How it was made", *_run(run)),
    ]
    return page.document(title, "".join(parts), FOOTER)


def _calibration_title(metrics: Mapping[str, Any]) -> str:
    return "Threshold and calibration" if metrics["positive_class"] else "Calibration"


def _mistakes(predictions: Predictions) -> str:
    two = len(predictions.class_names) == 2
    return tables.mistakes(predictions) if two else class_tables.mistakes(predictions)


def _second_sentence(metrics: Mapping[str, Any]) -> str:
    totals, n = class_totals(metrics), metrics["image"]["n"]
    common = metrics["class_names"][totals.index(max(totals))]
    always = f"Calling every image {common} would score {max(totals) / n:.2f}."
    positive, point = metrics["positive_class"], metrics["operating_point"]
    if positive is None:
        return f"{always} Of {len(totals)} classes the likeliest is called."
    ruled = point and point["rule"] != "fixed"
    fell_back = ruled and any(note.startswith("threshold left") for note in point["notes"])
    how = ", chosen on validation images" if ruled and not fell_back else ""
    return (
        f"{always} An image is called {positive} where P({positive}) is at least "
        f"{metrics['threshold']:.3g}{how}."
    )


def _tiles(metrics: Mapping[str, Any]) -> Iterator[tuple[Measured, str]]:
    for unit, key, name in wording_of(metrics).tiles:
        yield tables.measured(metrics[unit], metrics["intervals"][unit], key), name


def _pictures(
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    pngs: Mapping[str, bytes],
) -> str:
    shown = page.pictures(
        page.picture(pngs[f"{name}.png"], alt, f"{alt}. {text}")
        for name, (alt, text) in wording_of(metrics).pictures.items()
        if f"{name}.png" in pngs
    )
    if history:
        return shown
    return page.paragraph("No training history was given, so there are no curves.", "soft") + shown


def _gallery(pictures: Sequence[Picture], note: str | None = None) -> Iterator[str]:
    if note:
        yield page.paragraph(note, "soft")
    groups: dict[str, list[str]] = {}
    for found in pictures:
        markup = page.picture(found.png, found.caption, found.caption)
        groups.setdefault(found.group, []).append(markup)
    for name, markups in groups.items():
        yield (page.subheading(name) if name else "") + page.gallery(markups)


def _split(split: Mapping[str, Any]) -> Iterator[str]:
    counts = split.get("counts") or {}
    rows = [
        [side, name, count.get("images"), count.get("patients")]
        for side, classes in counts.items()
        for name, count in classes.items()
    ]
    if rows:
        yield page.table(["side", "class", "images", "patients"], rows)
    spoken = {True: "yes", False: "no"}
    overlap = split.get("overlap")
    tabular = isinstance(overlap, list) and all(isinstance(row, Mapping) for row in overlap)
    if overlap and tabular:
        columns = list(overlap[0])
        yield page.table(
            [column.replace("_", " ") for column in columns],
            [[row.get(column) for column in columns] for row in overlap],
            "Who is on more than one side",
        )
    rest = {
        key.replace("_", " "): spoken[value] if isinstance(value, bool) else value
        for key, value in split.items()
        if value is not None and key != "counts" and not (key == "overlap" and tabular)
    }
    if rest:
        yield page.key_values(rest)


def _run(run: Mapping[str, Any]) -> Iterator[str]:
    lines = {key: run[key] for key in ("weights", "device") if run.get(key)}
    if lines:
        yield page.key_values(lines)
    if run.get("stages"):
        yield page.subheading("Stages") + page.bullets(map(str, run["stages"]))
    if run.get("seconds"):
        rows = [[name, page.number(value, 1)] for name, value in run["seconds"].items()]
        yield page.subheading("Seconds") + page.key_values(dict(rows))
    if run.get("config"):
        yield page.folded("Configuration", page.key_values(run["config"]))
    if run.get("versions"):
        yield page.folded("Versions", page.key_values(run["versions"]))
