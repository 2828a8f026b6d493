"""Do 95 % intervals contain the true value 95 % of the time?

Test sets are drawn from populations whose true values are known, and every interval of the report
is computed for each. In the Gaussian population patients differ smoothly (two images of one
patient correlate by 0.6). In the other a few patients are hard: 30 % of their images are right.
For comparison the percentile bootstrap over patients (`percentile`) and over images (`images`) are
computed for the accuracy. For the comparison of two networks the share of p below 0.05 is counted
where both have the same true value.

    python benchmarks/interval_coverage.py --json coverage.json    # two processes, some minutes

Other settings: --sizes 9+19 --accuracies 0.95 --populations gauss0.3 hard0.05.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

from densenet_flax.evaluation import Predictions
from densenet_flax.evaluation.metrics.binary import ranking_metrics, threshold_metrics
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.calibration import (
    calibration_line,
    calibration_metrics,
    calibration_report,
)
from densenet_flax.evaluation.metrics.comparison import compare
from densenet_flax.evaluation.metrics.intervals import sample_intervals
from densenet_flax.evaluation.metrics.sample import sample_of

SIZES = ("6+6", "7+17", "16+38", "24+58")
ACCURACIES = (0.8, 0.9, 0.99)
POPULATIONS = ("gauss", "hard")
HARD_ACCURACY = 0.3
NAMES = ("benign", "malignant")


@dataclass(frozen=True)
class Population:
    """Patients whose images a network classifies with this accuracy, in both classes.

    The share is the correlation of two images of a patient, or how many patients are hard.
    """

    kind: str
    accuracy: float
    share: float

    @classmethod
    def parse(cls, text: str, accuracy: float) -> "Population":
        """Reads 'gauss', 'hard', or either with a share, such as 'hard0.05'."""
        kind = text.rstrip("0123456789.")
        # Default: nearly half of the mistakes are those of hard patients.
        share = 0.6 if kind == "gauss" else round(1 - accuracy, 3)
        return cls(kind, accuracy, float(text[len(kind) :] or share))

    def draw(self, sizes: tuple[int, int], random: np.random.Generator) -> "TestSet":
        """Draws new patients with 5 to 100 images each, 14 in the middle."""
        label = np.repeat([0, 1], sizes)
        count = np.clip(random.lognormal(np.log(14), 0.6, len(label)).astype(int), 5, 100)
        patient = np.repeat(np.arange(len(label)), count)
        noise = random.normal(size=len(patient))
        if self.kind == "gauss":
            effect = random.normal(size=len(label))
            margin = stats.norm.ppf(self.accuracy) + np.sqrt(self.share) * effect[patient]
            noise = noise * np.sqrt(1 - self.share)
        else:
            others = (self.accuracy - self.share * HARD_ACCURACY) / (1 - self.share)
            hard = random.random(len(label)) < self.share
            margin = stats.norm.ppf(np.where(hard, HARD_ACCURACY, others))[patient]
        sign = np.where(label[patient] == 1, 1, -1)
        return TestSet(label[patient], special.expit(sign * (margin + noise)), patient)


class TestSet(NamedTuple):
    """Label, probability and patient of each image."""

    label: np.ndarray
    probability: np.ndarray
    patient: np.ndarray

    def table(self, probability: np.ndarray | None = None) -> Predictions:
        """The predictions table."""
        chosen = self.probability if probability is None else probability
        files = np.char.add("i", np.arange(len(chosen)).astype(str))
        return Predictions(files, self.patient.astype(str), self.label, chosen)


def true_values(population: Population, sizes: tuple[int, int]) -> dict[str, float]:
    """The metrics of 16,000 patients, weighted as in the test sets."""
    n = 8000
    test = population.draw((n, n), np.random.default_rng(12345))
    label, probability, patient = test
    count = np.bincount(patient)
    mean = np.bincount(patient, probability) / count
    patient_label = np.repeat([0, 1], n)
    share = np.array(sizes) / sum(sizes)
    truth = {}
    for level, y, p in (("image", label, probability), ("patient", patient_label, mean)):
        weight = np.where(y == 1, share[1] / np.sum(y == 1), share[0] / np.sum(y == 0))
        right = (p >= 0.5) == (y == 1)
        rate = [weight[(y == k) & right].sum() / share[k] for k in (0, 1)]
        if level == "image":
            rate = [population.accuracy] * 2  # exactly
        confusion = np.array([[rate[0], 1 - rate[0]], [1 - rate[1], rate[1]]]) * share[:, None]
        values = threshold_metrics(confusion[None])
        once = np.zeros(len(y), int)
        values |= ranking_metrics(y == 1, p, once, np.ones((1, 1)), weight)
        truth |= {f"{level} {name}": float(v[0]) for name, v in values.items()}
    truth["patient patient_accuracy_by_mean_probability"] = truth["patient accuracy"]
    truth["patient patient_recognition_rate"] = population.accuracy
    # Calibration of a population with the classes of the test sets, by drawing patients so.
    keep = min(n, int(n * share.min() / share.max()))
    kept = np.concatenate([np.arange(keep if share[0] <= share[1] else n)])
    rows = np.isin(
        patient, np.concatenate([kept, n + np.arange(n if share[0] <= share[1] else keep)])
    )
    part = TestSet(label[rows], probability[rows], np.unique(patient[rows], return_inverse=True)[1])
    scores = calibration_metrics(part.label, part.probability)
    for name in ("brier", "nll", "ece", "ece_top_label"):
        truth[f"test {name}_before"] = scores[name]
    for name, (value, _) in calibration_line(part.table(), part.probability, Bootstrap(2)).items():
        truth[f"test {name}_before"] = float(value or 0)
    return truth


def percentile(test: TestSet, unit: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """The percentile bootstrap of the accuracy, of units drawn within their class."""
    random = np.random.default_rng(seed)
    right = (test.probability >= 0.5) == (test.label == 1)
    total, size = np.bincount(unit, right), np.bincount(unit)
    kind = np.zeros(len(size), int)
    kind[unit] = test.label
    weights = np.zeros((resamples, len(size)))
    for k in (0, 1):
        members = np.flatnonzero(kind == k)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = random.multinomial(len(members), share, resamples)
    low, high = np.quantile((weights @ total) / (weights @ size), [0.025, 0.975])
    return float(low), float(high)


def coverage(
    sizes: tuple[int, int], population: Population, test_sets: int, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """Returns, for each figure, how often its interval holds the truth, and the mean width."""
    truth = true_values(population, sizes)
    key = [seed, *sizes, round(1000 * population.accuracy), round(1000 * population.share)]
    random = np.random.default_rng([*key, population.kind == "hard"])
    hits: dict[str, list[bool]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    small: dict[str, list[bool]] = defaultdict(list)

    def add(name: str, true: float, low: float, high: float) -> None:
        hits[name].append(low - 1e-9 <= true <= high + 1e-9)
        widths[name].append(high - low)

    for number in range(test_sets):
        test = population.draw(sizes, random)
        table, bootstrap = test.table(), Bootstrap(resamples, number)
        spans = sample_intervals(sample_of(table), NAMES, bootstrap)
        spans["test"] = calibration_report(table, None, bootstrap)["test"]["intervals"]
        for level in ("image", "patient", "test"):
            for name, span in spans[level].items():
                if name != "undefined" and span is not None:
                    add(f"{level} {name}", truth[f"{level} {name}"], span["low"], span["high"])
        if number % 10 == 0:  # what takes longest
            units = {"percentile": test.patient, "images": np.arange(len(test.label))}
            for name, unit in units.items():
                low, high = percentile(test, unit, 200, number)
                add(f"({name}) accuracy", population.accuracy, low, high)
        if number % 5 == 0:
            # Another network of the same accuracy; other patients are hard for it.
            order = population.draw(sizes, np.random.default_rng([*key, number, 1]))
            other = _same_images(test, order)
            result = compare(table, test.table(other))
            for level in ("image", "patient"):
                for name, row in result[level].items():
                    if name != "undefined" and row is not None:
                        small[f"{level} {name}"].append(row["p"] < 0.05)
    return {
        "sizes": sizes,
        "population": population.kind,
        "accuracy": population.accuracy,
        "share": population.share,
        "test_sets": test_sets,
        "coverage": {name: float(np.mean(values)) for name, values in hits.items()},
        "exists": {
            name: len(values) / (-(-test_sets // 10) if name.startswith("(") else test_sets)
            for name, values in hits.items()
        },
        "width": {name: float(np.mean(values)) for name, values in widths.items()},
        "type_one_error": {name: float(np.mean(values)) for name, values in small.items()},
    }


def _same_images(test: TestSet, other: TestSet) -> np.ndarray:
    """Probabilities of other patients' images for these images, patient by patient."""
    starts = np.searchsorted(other.patient, np.arange(other.patient[-1] + 1))
    counts = np.bincount(other.patient)
    position = np.arange(len(test.patient)) - np.searchsorted(test.patient, test.patient)
    return other.probability[starts[test.patient] + position % counts[test.patient]]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints coverage (and mean width) per figure and cell, then the range over all cells."""
    for row in rows:
        sizes = "+".join(map(str, row["sizes"]))
        print(f"\n{sizes} patients, accuracy {row['accuracy']}, {row['population']} {row['share']}")
        for name, value in row["coverage"].items():
            alpha = row["type_one_error"].get(name)
            error = "" if alpha is None else f"   p < 0.05 {alpha:.3f}"
            exists = row["exists"][name]
            width = row["width"][name]
            print(f"  {name:46} {value:.3f}  width {width:.3f}  exists {exists:.2f}{error}")
    print(f"\n{'over all cells':48} lowest  median  highest  p<0.05 (mean, highest)")
    for name in rows[0]["coverage"]:
        values = [row["coverage"][name] for row in rows if name in row["coverage"]]
        alphas = [row["type_one_error"][name] for row in rows if name in row["type_one_error"]]
        errors = f"{np.mean(alphas):.3f} {max(alphas):.3f}" if alphas else ""
        print(
            f"{name:48} {min(values):.3f}   {np.median(values):.3f}   {max(values):.3f}    {errors}"
        )


def main() -> None:
    """Runs all cells in processes and prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="(%(default)s)")
    parser.add_argument("--accuracies", nargs="+", type=float, default=ACCURACIES)
    parser.add_argument("--populations", nargs="+", default=POPULATIONS, help="(%(default)s)")
    parser.add_argument("--test-sets", type=int, default=1000, help="per cell (%(default)s)")
    parser.add_argument("--resamples", type=int, default=500, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    started = time.perf_counter()
    with ProcessPoolExecutor(args.processes) as pool:
        jobs = [
            pool.submit(
                coverage,
                tuple(map(int, sizes.split("+"))),
                Population.parse(text, accuracy),
                args.test_sets,
                args.resamples,
                args.seed,
            )
            for sizes in args.sizes
            for accuracy in args.accuracies
            for text in args.populations
        ]
        rows: list[dict[str, Any]] = []
        for job in as_completed(jobs):
            rows.append(job.result())
            if args.json:
                args.json.write_text(json.dumps(rows, indent=2) + "\n")
    print_table(sorted(rows, key=lambda row: (row["sizes"], row["accuracy"], row["population"])))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
