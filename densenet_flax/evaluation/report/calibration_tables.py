"""The report's section on calibration."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from densenet_flax.evaluation.report import page
from densenet_flax.evaluation.report.page import Measured
from densenet_flax.evaluation.report.tables import measured


def calibration(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The operating point, and how well the probabilities mean what they say."""
    point, found = metrics["operating_point"], metrics["calibration"]
    positive = metrics["positive_class"]
    if point is None:
        given = "" if positive is None else f"The threshold {metrics['threshold']:.3g} was given, "
        yield page.paragraph(
            (f"{given}not chosen on validation images, and the" if given else "The")
            + " probabilities are as the network says them."
        )
    else:
        threshold = {}
        if positive:
            threshold["threshold"] = (
                f"{point['threshold']:.4g} on the network's own P({positive}), which is "
                f"{point['calibrated_threshold']:.4g} calibrated"
            )
        yield page.key_values(
            {
                **threshold,
                "rule": point["rule"],
                "temperature": f"{point['temperature']:.4g}",
                "chosen on": point["chosen_on"] or "nothing: defaults",
            }
        )
    sides = [("test", found["test"])]
    if found["validation"]:
        sides.append(("validation, where it was fitted", found["validation"]))
    spans = found["test"]["intervals"]
    rows = []
    for name, side in sides:
        for when, said in (("before", "as the network says"), ("after", "calibrated")):
            values = side[when]
            if values:
                own = {key: spans.get(f"{key}_{when}") for key in ("brier", "nll")}
                drawn = own if name == "test" else None
                rows.append(
                    [
                        name,
                        said,
                        *(measured(values, drawn, key) for key in ("brier", "nll")),
                        *(values[key] for key in ("ece", "ece_top_label") if key in values),
                    ]
                )
    header = ["images", "probability", "Brier score"]
    header += ["NLL", "ECE", "ECE, likelier class"] if positive else ["log-loss", "ECE"]
    yield page.table(header, rows)
    error = f"expected calibration error over {found['bins']} bins of equal width"
    if positive:
        text = (
            f"Brier score of P({positive}), negative log-likelihood in nats, and {error}: of "
            f"P({positive}), and of the likelier class's probability, as many papers count it."
        )
    else:
        text = (
            "Brier score summed over classes (0 to 2), negative log-likelihood of the true class "
            f"in nats, and {error}: of the likeliest class's probability against how often it is "
            "right."
        )
    yield page.paragraph(
        f"{text} Lower is better. An ECE has no interval here: it is biased upwards, and in a "
        "resample even more so.",
        "soft",
    )
    yield page.folded(f"The {found['bins']} bins of the test images", _bins(found["test"]))


def _bins(test: Mapping[str, Any]) -> str:
    parts = []
    for when, said in (("before", "as the network says"), ("after", "calibrated")):
        if test[when]:
            rows: Sequence[Any] = [
                [
                    f"{row['lower_edge']:.3f} to {row['upper_edge']:.3f}",
                    row["count"],
                    row["confidence"],
                    Measured(row["accuracy"], *(row["accuracy_interval"] or ())),
                ]
                for row in test[when].get("bins") or test[when]["bins_top_label"]
            ]
            event = "positive" if "bins" in test[when] else "right"
            header = ["bin", "images", "mean probability", f"share that is {event}"]
            parts.append(page.table(header, rows, said))
    return "".join(parts)
