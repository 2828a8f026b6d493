"""Do 95 % intervals of the ROC-AUC contain the true value 95 % of the time?

Test sets are drawn from a population whose AUC is known, first with patients that do not differ and
then with patients that differ more and more. For each, three bootstrap intervals are
computed: patients resampled (as in the report), the same without the widening for few patients,
and images resampled as if they were independent.

    python benchmarks/interval_coverage.py

Score of an image = d · label + sqrt(r) · (effect of its patient) + sqrt(1 − r) · (its own noise),
all normal, so r is the correlation of two images of one patient, and the AUC of an image of one
patient against an image of another is Phi(d / sqrt(2)) for every r.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import expit
from scipy.stats import norm

from densenet_flax.evaluation.metrics.binary import ranking_metrics
from densenet_flax.evaluation.metrics.bootstrap import Basis, Bootstrap, draw_patients

AUC = 0.95
LEVEL = 0.95
# Benign and malignant patients: an official BreakHis test fold, all of BreakHis, twice that.
SIZES = ((9, 19), (24, 58), (48, 116))
CORRELATIONS = (0.0, 0.1, 0.2, 0.4, 0.8)
METHODS = ("patients", "patients, plain", "images")
IMAGES_PER_PATIENT = 20  # on average; from a few to three times as many
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "interval_coverage.png"


def draw_test_set(
    sizes: tuple[int, int], correlation: float, images: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a test set of new patients: label, probability and patient number of each image."""
    patient_label = np.repeat([0, 1], sizes)
    counts = np.maximum(1, random.lognormal(np.log(images) - 0.125, 0.5, sum(sizes)).astype(int))
    patient = np.repeat(np.arange(sum(sizes)), counts)
    label = patient_label[patient]
    effect = random.normal(size=sum(sizes))[patient]
    noise = random.normal(size=len(patient))
    score = norm.ppf(AUC) * np.sqrt(2) * label
    score += np.sqrt(correlation) * effect + np.sqrt(1 - correlation) * noise
    return label, expit(score), patient


def resampled_aucs(
    label: np.ndarray, probability: np.ndarray, unit: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """Returns the AUCs of resamples of units, which are patients or single images."""
    unit_label = np.zeros(unit.max() + 1, np.int64)
    unit_label[unit] = label
    weights = draw_patients(unit_label, resamples, seed)
    return ranking_metrics(label == 1, probability, unit, weights)["roc_auc"]


def coverage(
    sizes: tuple[int, int],
    correlation: float,
    test_sets: int,
    resamples: int,
    seed: int,
    images: int = IMAGES_PER_PATIENT,
) -> dict[str, Any]:
    """Returns the fraction of test sets whose interval contains the true AUC, for each method."""
    random = np.random.default_rng([seed, *sizes, round(1000 * correlation)])
    inside = dict.fromkeys(METHODS, 0)
    width = dict.fromkeys(METHODS, 0.0)
    plain = (1 - LEVEL) / 2
    widened = Bootstrap(resamples, 0, LEVEL).tail(Basis(min(sizes)))
    for number in range(test_sets):
        label, probability, patient = draw_test_set(sizes, correlation, images, random)
        by_patient = resampled_aucs(label, probability, patient, resamples, number)
        by_image = resampled_aucs(label, probability, np.arange(len(label)), resamples, number)
        for name, values, tail in (
            ("patients", by_patient, widened),
            ("patients, plain", by_patient, plain),
            ("images", by_image, plain),
        ):
            low, high = np.quantile(values, [tail, 1 - tail])
            inside[name] += int(low <= AUC <= high)
            width[name] += float(high - low)
    return {
        "benign_patients": sizes[0],
        "malignant_patients": sizes[1],
        "correlation": correlation,
        "test_sets": test_sets,
        "resamples": resamples,
        "coverage": {name: hits / test_sets for name, hits in inside.items()},
        "mean_width": {name: total / test_sets for name, total in width.items()},
    }


def draw_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draws a panel per size: coverage against the correlation of images of one patient."""
    sizes = list(dict.fromkeys((row["benign_patients"], row["malignant_patients"]) for row in rows))
    figure = Figure(figsize=(3.5 * len(sizes) + 0.5, 4.1), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    styles = {
        "patients": ("#0072B2", "o-", "patients resampled"),
        "patients, plain": ("#56B4E9", "^:", "… without widening"),
        "images": ("#D55E00", "s--", "images resampled"),
    }
    for axes, size in zip(panels, sizes, strict=True):
        points = [
            row for row in rows if (row["benign_patients"], row["malignant_patients"]) == size
        ]
        x = [row["correlation"] for row in points]
        axes.axhline(100 * LEVEL, color="#8a8a8a", linewidth=1, linestyle=":")
        for name, (color, style, label) in styles.items():
            y = np.array([row["coverage"][name] for row in points])
            error = 1.96 * np.sqrt(y * (1 - y) / points[0]["test_sets"])
            axes.errorbar(x, 100 * y, 100 * error, fmt=style, color=color, label=label, capsize=2)
        axes.set_title(f"{size[0]} benign + {size[1]} malignant patients", fontsize=10)
        axes.set_xlabel("correlation of images of one patient")
        axes.set_ylim(0, 102)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"% of {LEVEL:.0%} intervals that contain the true AUC")
    panels[0].legend(frameon=False, loc="lower left")
    return figure


def main() -> None:
    """Runs all combinations, prints a table and writes the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--test-sets", type=int, default=500, help="per point (%(default)s)")
    parser.add_argument("--resamples", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    started = time.perf_counter()
    rows = []
    print(
        "coverage and mean width\nbenign malignant correlation",
        *(f"{method:>17}" for method in METHODS),
    )
    for sizes in SIZES:
        for correlation in CORRELATIONS:
            row = coverage(sizes, correlation, args.test_sets, args.resamples, args.seed)
            rows.append(row)
            cells = " ".join(
                f"{row['coverage'][name]:11.3f} {row['mean_width'][name]:.3f}" for name in METHODS
            )
            print(f"{sizes[0]:6} {sizes[1]:9} {correlation:11} {cells}", flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    draw_figure(rows).savefig(args.picture, dpi=130, metadata={"Software": None})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
