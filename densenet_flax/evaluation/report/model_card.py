"""MODEL_CARD.md: the usual headings, filled from the run, and honest about what it cannot know.

An author adds what no run can know, such as ethics and funding, through `info['card']`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from densenet_flax.evaluation.metrics.measures import BY_MEAN
from densenet_flax.evaluation.report.checklist import (
    UNKNOWN,
    calibration_of,
    checklist,
    dataset_of,
    flat_of,
    model_of,
    split_of,
    threshold_of,
)
from densenet_flax.evaluation.report.wording import CLASS_COLUMNS, wording_of

CARD_KEYS = (
    "authors",
    "citation",
    "conflicts",
    "data_availability",
    "data_dates",
    "data_source",
    "demographics",
    "eligibility",
    "environment",
    "ethics",
    "external_validation",
    "funding",
    "intended_use",
    "involvement",
    "license",
    "missing_data",
    "population",
    "protocol",
    "reference_standard",
    "sample_size",
)


def model_card(verdict: str, metrics: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        verdict: The sentence at the top of the report.
        metrics: As in metrics.json.
    """
    run = metrics["run"]
    card = run.get("card") or {}
    parts = [
        _front_matter(metrics, card),
        f"# {_text(run.get('title') or 'Model card')}",
        f"**{_text(verdict)}.**",
        "Research use only, not for diagnosis.",
        *_details(run, card),
        *_uses(card),
        *_risks(metrics),
        *_training(metrics, card),
        *_evaluation(metrics),
        "## Environmental impact",
        _text(card.get("environment") or UNKNOWN.capitalize())
        + f". Time: {_seconds(run)}. Device: {_text(run.get('device') or UNKNOWN)}.",
        "## Citation",
        _text(card.get("citation") or f"{UNKNOWN.capitalize()}."),
        "## Reporting checklist",
        "Items of TRIPOD+AI (Collins et al., BMJ 2024) and CLAIM (Mongan et al., Radiology: AI "
        f"2020). “{UNKNOWN.capitalize()}” is for the authors to fill in.",
        _table(["item", "TRIPOD+AI", "CLAIM", "this run"], checklist(verdict, metrics, card)),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(metrics: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """The header that model hubs read; JSON strings are YAML strings."""
    results = [
        f"    - type: {key}\n      name: {name}\n      value: {metrics['image'][key]:.6f}"
        for key, name, _ in wording_of(metrics).metrics
        if metrics["image"][key] is not None
    ]
    title = json.dumps(str(metrics["run"].get("title") or "densenet_flax"))
    dataset = json.dumps(dataset_of(metrics["run"]))
    return "\n".join(
        [
            "---",
            "library_name: densenet_flax",
            "pipeline_tag: image-classification",
            f"license: {json.dumps(str(card.get('license') or 'unknown'))}",
            "tags: [histopathology, breast-cancer, densenet, jax, flax]",
            "model-index:",
            f"- name: {title}",
            "  results:",
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {dataset}, type: {dataset}, split: test}}",
            "    metrics:",
            *results,
            "---",
        ]
    )


def _details(run: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {value}" for name, value in (run.get("versions") or {}).items())
    return [
        "## Model details",
        _bullets(
            {
                "Model": model_of(run),
                "Weights": flat_of(run.get("weights")),
                "Developed by": card.get("authors"),
                "License": card.get("license"),
                "Libraries": versions,
                "Device": run.get("device"),
            }
        ),
    ]


def _uses(card: Mapping[str, Any]) -> list[str]:
    return [
        "## Uses",
        "### Direct use",
        _text(
            card.get("intended_use")
            or "Research on histopathology image classification, and comparison of methods on the "
            "same test images."
        ),
        "### Out-of-scope use",
        "Diagnosis, triage or any decision about a patient; other organs, stains, magnifications "
        "or scanners than the images it was judged by, without judging it anew.",
    ]


def _risks(metrics: Mapping[str, Any]) -> list[str]:
    warnings = metrics["warnings"]
    return [
        "## Bias, risks and limitations",
        "\n".join(f"- {_text(line)}" for line in warnings) or "- The report gives no warning.",
        "Intervals cover the choice of test patients only: not another training run, another "
        "laboratory, another scanner or another share of the classes.",
    ]


def _training(metrics: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    run = metrics["run"]
    split = run.get("split") or {}
    stages = run.get("stages") or []
    return [
        "## Training details",
        "### Training data",
        _bullets(
            {
                "Data set": dataset_of(run),
                "Source": card.get("data_source"),
                "Split": split_of(split),
                "Split hash": split.get("hash"),
            }
        ),
        *([_counts(split)] if split.get("counts") else []),
        "### Training procedure",
        "\n".join(f"- {_text(stage)}" for stage in stages) or UNKNOWN.capitalize() + ".",
        f"Time: {_seconds(run)}.",
    ]


def _evaluation(metrics: Mapping[str, Any]) -> Iterator[str]:
    drawn = metrics["intervals"]
    image, patient = metrics["image"], metrics["patient"]
    yield "## Evaluation"
    yield "### Testing data, factors and metrics"
    two = metrics["positive_class"] is not None
    called = f"Threshold {threshold_of(metrics)}" if two else "The likeliest class is called"
    yield (
        f"{image['n']} images of {patient['n']} patients. {called}. "
        f"In brackets: {drawn['level']:.0%} intervals, {drawn['method']}, "
        f"{drawn['resamples']} resamples, seed {drawn['seed']}."
    )
    yield "### Results"
    rows = []
    for key, name, _ in wording_of(metrics).metrics:
        ours = BY_MEAN if key == "accuracy" else key
        rows.append([name, _value(metrics, "image", key), _value(metrics, "patient", ours)])
    rate = _value(metrics, "patient", "patient_recognition_rate")
    rows.append(["Patient recognition rate", "", rate])
    yield _table(["metric", "images", "patients by mean probability"], rows)
    if "by_class" in metrics:
        yield "By class, each against the rest:"
        yield _by_class(metrics)
    columns = wording_of(metrics).card
    if metrics["by_magnification"]:
        yield "By magnification:"
        yield _table(
            ["magnification", "images", "patients", *columns.values()],
            [
                [
                    f"{row['magnification']}×" if row["magnification"] else "unknown",
                    row["n"],
                    row["patients"],
                    *(_with_interval(row[key], span["image"][key]) for key in columns),
                ]
                for row, span in zip(
                    metrics["by_magnification"], drawn["by_magnification"], strict=True
                )
            ],
        )
    yield "Calibration: " + calibration_of(metrics) + "."


def _by_class(metrics: Mapping[str, Any]) -> str:
    rows = [
        [
            row["class"],
            row["n"],
            row["patients"],
            *(_with_interval(row[key], span[key]) for key in CLASS_COLUMNS),
        ]
        for row, span in zip(metrics["by_class"], metrics["intervals"]["by_class"], strict=True)
    ]
    return _table(["class", "images", "patients", *CLASS_COLUMNS.values()], rows)


def _value(metrics: Mapping[str, Any], unit: str, name: str) -> str:
    return _with_interval(metrics[unit][name], metrics["intervals"][unit].get(name))


def _with_interval(value: float | None, span: Mapping[str, Any] | None) -> str:
    if value is None:
        return "does not exist"
    return f"{value:.3f}" + (f" [{span['low']:.3f}, {span['high']:.3f}]" if span else "")


def _counts(split: Mapping[str, Any]) -> str:
    rows = [
        [side, name, numbers.get("images"), numbers.get("patients")]
        for side, classes in split["counts"].items()
        for name, numbers in classes.items()
    ]
    return _table(["side", "class", "images", "patients"], rows)


def _seconds(run: Mapping[str, Any]) -> str:
    known = {name: value for name, value in (run.get("seconds") or {}).items() if value is not None}
    return ", ".join(f"{_text(name)} {value:.0f} s" for name, value in known.items()) or UNKNOWN


def _bullets(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- **{name}:** {_text(value or UNKNOWN)}" for name, value in values.items())


def _table(header: list[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join("–" if cell == "" else _text(cell or UNKNOWN) for cell in line) + " |"
        for line in lines
    )


def _text(value: Any) -> str:
    """Outside text on one line, with nothing in it that Markdown or HTML would act on."""
    text = " ".join(str(value).split())
    for mark in ("\\", "|", "*", "_", "`", "[", "]", "#"):
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
