"""Do 95 % intervals contain the true value 95 % of the time?

Test sets are drawn from populations whose true values are known, and every interval of the report
is computed for each. In the Gaussian population patients differ smoothly (two images of one
patient correlate by 0.6). In the other a few patients are hard: 30 % of their images are right.
For comparison the percentile bootstrap over patients (`percentile`) and over images (`images`) are
computed for the accuracy. For the comparison of two networks the share of p below 0.05 is counted
where both have the same true value. What takes longest is computed for every fifth test set
(predictive values and sensitivity at a specificity), every second (comparisons) or every tenth
(plain bootstraps).

    python benchmarks/interval_coverage.py --csv coverage.csv    # two processes, half an hour

A cell that is in the file is not computed again, so an interrupted run goes on. Other settings:
--sizes 9+19 --accuracies 0.95 --populations gauss0.3 hard0.05.
"""

import argparse
import csv
import datetime
import itertools
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from densenet_flax.evaluation import Predictions
from densenet_flax.evaluation.metrics.binary import ranking_metrics, roc_curve, threshold_metrics
from densenet_flax.evaluation.metrics.bootstrap import Bootstrap
from densenet_flax.evaluation.metrics.calibration import (
    calibration_intervals,
    calibration_line,
    calibration_metrics,
)
from densenet_flax.evaluation.metrics.clinic import (
    PREVALENCES,
    SPECIFICITIES,
    clinic_metrics,
    predictive_values,
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


class Row(NamedTuple):
    """A line of the file: a figure in a cell, and of how many test sets it has an interval."""

    sizes: str
    population: str
    share: float
    accuracy: float
    figure: str
    test_sets: int
    coverage: float
    width: float
    type_one_error: float | None

    @property
    def cell(self) -> tuple[str, str, float, float]:
        """What all its figures share."""
        return self.sizes, self.population, self.share, self.accuracy

    @classmethod
    def read(cls, path: Path) -> "list[Row]":
        """Reads a file; none is no row."""
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return [
                cls(
                    row["sizes"],
                    row["population"],
                    float(row["share"]),
                    float(row["accuracy"]),
                    row["figure"],
                    int(row["test_sets"]),
                    float(row["coverage"]),
                    float(row["width"]),
                    float(row["type_one_error"]) if row["type_one_error"] else None,
                )
                for row in csv.DictReader(file)
            ]


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
        values |= ranking_metrics(y == 1, p, np.arange(len(y)), weight[None])
        for prevalence in PREVALENCES:
            values |= {
                f"{name} at {prevalence}": value
                for name, value in predictive_values(confusion[None], prevalence).items()
            }
        false, true = roc_curve(y == 1, p)
        for specificity in SPECIFICITIES:
            reached = true[false <= 1 - specificity].max()
            values[f"sensitivity at specificity {specificity}"] = [reached]
        truth |= {f"{level} {name}": float(v[0]) for name, v in values.items()}
    truth["patient patient_accuracy_by_mean_probability"] = truth["patient accuracy"]
    truth["patient patient_recognition_rate"] = population.accuracy
    # Calibration of a population with the classes of the test sets, by drawing patients so.
    kept = [k * n + np.arange(int(n * share[k] / share.max())) for k in (0, 1)]
    rows = np.isin(patient, np.concatenate(kept))
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


class Record:
    """What is counted in one cell, by name of the figure."""

    def __init__(self, truth: dict[str, float]) -> None:
        self.truth = truth
        self.hits: dict[str, list[bool]] = defaultdict(list)
        self.widths: dict[str, list[float]] = defaultdict(list)
        self.small: dict[str, list[bool]] = defaultdict(list)

    def add(self, name: str, low: float, high: float, true: float | None = None) -> None:
        """Counts whether an interval holds the truth."""
        true = self.truth[name] if true is None else true
        self.hits[name].append(low - 1e-9 <= true <= high + 1e-9)
        self.widths[name].append(high - low)

    def add_report(self, test: TestSet, bootstrap: Bootstrap) -> None:
        """The intervals of the report that take little time."""
        table = test.table()
        spans = sample_intervals(sample_of(table), NAMES, bootstrap)
        calibration = calibration_intervals(table, {"before": table.probability}, bootstrap)
        lines = calibration_line(table, table.probability, bootstrap)
        calibration |= {f"{name}_before": span for name, (_, span) in lines.items()}
        spans["test"] = calibration
        for level in ("image", "patient", "test"):
            for name, span in spans[level].items():
                if name != "undefined" and span is not None:
                    self.add(f"{level} {name}", span["low"], span["high"])

    def add_clinic(self, test: TestSet, bootstrap: Bootstrap) -> None:
        """Predictive values at other prevalences, and sensitivity at a specificity."""
        clinic = clinic_metrics(test.table(), bootstrap) or {}
        for level in ("image", "patient"):
            values = clinic[level]
            for row in values["predictive_values"][: len(PREVALENCES)]:
                for name in ("ppv", "npv"):
                    span = row[f"{name}_interval"]
                    if span:
                        self.add(
                            f"{level} {name} at {row['prevalence']}", span["low"], span["high"]
                        )
            for row in values["sensitivity_at_specificity"]:
                name, span = f"sensitivity at specificity {row['specificity']}", row["interval"]
                self.add(f"{level} {name}", span["low"], span["high"])

    def add_comparison(self, test: TestSet, probability: np.ndarray) -> None:
        """A network of the same accuracy."""
        result = compare(test.table(), test.table(probability))
        for level in ("image", "patient"):
            for name, row in result[level].items():
                if name != "undefined" and row is not None:
                    self.small[f"{level} {name}"].append(row["p"] < 0.05)


def coverage(
    sizes: tuple[int, int], population: Population, test_sets: int, resamples: int, seed: int = 0
) -> list[Row]:
    """Returns, for each figure, how often its interval holds the truth, and the mean width."""
    key = [seed, *sizes, round(1000 * population.accuracy), round(1000 * population.share)]
    random = np.random.default_rng([*key, population.kind == "hard"])
    record = Record(true_values(population, sizes))
    for number in range(test_sets):
        test, bootstrap = population.draw(sizes, random), Bootstrap(resamples, number)
        record.add_report(test, bootstrap)
        if number % 5 == 0:
            record.add_clinic(test, bootstrap)
        if number % 2 == 0:
            # Other patients are hard for the other network.
            other = population.draw(sizes, np.random.default_rng([*key, number, 1]))
            record.add_comparison(test, _same_images(test, other))
        if number % 10 == 0:
            units = {"percentile": test.patient, "images": np.arange(len(test.label))}
            for name, unit in units.items():
                low, high = percentile(test, unit, 200, number)
                record.add(f"({name}) accuracy", low, high, population.accuracy)
    return [
        Row(
            "+".join(map(str, sizes)),
            population.kind,
            population.share,
            population.accuracy,
            name,
            len(hits),
            float(np.mean(hits)),
            float(np.mean(record.widths[name])),
            float(np.mean(record.small[name])) if name in record.small else None,
        )
        for name, hits in record.hits.items()
    ]


def _same_images(test: TestSet, other: TestSet) -> np.ndarray:
    """Probabilities of other patients' images for these images, patient by patient."""
    starts = np.searchsorted(other.patient, np.arange(other.patient[-1] + 1))
    counts = np.bincount(other.patient)
    position = np.arange(len(test.patient)) - np.searchsorted(test.patient, test.patient)
    return other.probability[starts[test.patient] + position % counts[test.patient]]


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table of docs/evaluation.md: a line per figure, over all cells."""
    sizes = list(dict.fromkeys(row.sizes for row in rows))
    titles = [
        "figure",
        "lowest",
        "median",
        "highest",
        *(f"width at {s}" for s in sizes),
        "p < 0.05",
    ]
    lines = [titles, ["---"] * len(titles)]
    for figure in dict.fromkeys(row.figure for row in rows):
        cells = [row for row in rows if row.figure == figure]
        # A figure that exists in few test sets has no coverage to speak of.
        covered = [row.coverage for row in cells if row.test_sets >= 50]
        errors = [row.type_one_error for row in cells if row.type_one_error is not None]
        widths = [
            np.mean([row.width for row in cells if row.sizes == s] or [np.nan]) for s in sizes
        ]
        ends = [min(covered), np.median(covered), max(covered)] if covered else [np.nan] * 3
        error = f"{np.mean(errors):.3f}, at most {max(errors):.3f}" if errors else ""
        lines.append([figure, *(f"{v:.3f}" for v in ends), *(f"{w:.2f}" for w in widths), error])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Computes the cells in processes and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="(%(default)s)")
    parser.add_argument("--accuracies", nargs="+", type=float, default=ACCURACIES)
    parser.add_argument("--populations", nargs="+", default=POPULATIONS, help="(%(default)s)")
    parser.add_argument("--test-sets", type=int, default=1000, help="per cell (%(default)s)")
    parser.add_argument("--resamples", type=int, default=300, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--csv", type=Path, default=Path("coverage.csv"), help="(%(default)s)")
    args = parser.parse_args()
    started = time.perf_counter()
    rows = Row.read(args.csv)
    done = {row.cell for row in rows}
    with ProcessPoolExecutor(args.processes) as pool:
        jobs = []
        cells = itertools.product(args.sizes, args.accuracies, args.populations)
        for sizes, accuracy, text in cells:
            cell = Population.parse(text, accuracy)
            if (sizes, cell.kind, cell.share, accuracy) not in done:
                counts = tuple(map(int, sizes.split("+")))
                settings = args.test_sets, args.resamples, args.seed
                jobs.append(pool.submit(coverage, counts, cell, *settings))
        for job in as_completed(jobs):
            rows += job.result()
            with args.csv.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([Row._fields, *rows])
            print(*rows[-1].cell, f"{time.perf_counter() - started:.0f} s", flush=True)
    print(f"{datetime.date.today()}, python {shlex.join(sys.argv)}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
