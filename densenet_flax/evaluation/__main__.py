"""Evaluates prediction tables from the command line, without the network that made them."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from densenet_flax.common.errors import InputError, path_errors
from densenet_flax.evaluation.metrics.bootstrap import LEVEL, RESAMPLES
from densenet_flax.evaluation.metrics.comparison import compare, comparison_table
from densenet_flax.evaluation.metrics.folds import cross_validation_summary, summary_table
from densenet_flax.evaluation.predictions import CLASS_NAMES
from densenet_flax.evaluation.predictions_csv import read_csv
from densenet_flax.evaluation.report.cautions import verdict
from densenet_flax.storage.locks import locked


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 1 if the input is invalid."""
    options = _parser().parse_args(arguments)
    try:
        with path_errors():
            options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m densenet_flax.evaluation", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--classes",
        metavar="NEGATIVE,POSITIVE",
        help=f"class names in the tables ({','.join(CLASS_NAMES)}; more than two are read from "
        "the columns probability_<class>)",
    )
    common.add_argument("--resamples", type=int, default=RESAMPLES, help="(%(default)s)")
    common.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    printed = argparse.ArgumentParser(add_help=False)
    printed.add_argument("--level", type=float, default=LEVEL, help="(%(default)s)")
    printed.add_argument("--json", action="store_true", help="print JSON instead of a table")

    command = commands.add_parser(
        "compare", parents=[common, printed], help="two networks on the same test images"
    )
    command.add_argument("a", metavar="A.csv", help="predictions of the baseline network")
    command.add_argument("b", metavar="B.csv", help="predictions of the other network")
    command.set_defaults(run=_compare)

    command = commands.add_parser(
        "folds", parents=[common, printed], help="cross-validation: mean ± SD and pooled"
    )
    command.add_argument("tables", nargs="+", metavar="FOLD.csv", help="a table per fold")
    command.set_defaults(run=_folds)

    command = commands.add_parser("report", parents=[common], help="report.html of a table")
    command.add_argument("table", metavar="TEST.csv")
    command.add_argument("directory", metavar="DIRECTORY", help="where the report is written")
    command.add_argument(
        "--validation", metavar="CSV", help="table on which threshold and temperature are chosen"
    )
    command.add_argument(
        "--rule",
        default="fixed",
        help="fixed, youden, f1, sensitivity>=0.95, or cost=10: how many false positives a false "
        "negative weighs (%(default)s)",
    )
    command.add_argument("--title", help="title of the page")
    command.set_defaults(run=_report)
    return parser


def _class_names(options: argparse.Namespace) -> tuple[str, ...] | None:
    return options.classes and tuple(name.strip() for name in options.classes.split(","))


def _compare(options: argparse.Namespace) -> None:
    a, b = (read_csv(path, _class_names(options)) for path in (options.a, options.b))
    result = compare(a, b, resamples=options.resamples, seed=options.seed, level=options.level)
    _print(options, result, comparison_table(result, options.a, options.b))


def _folds(options: argparse.Namespace) -> None:
    folds = [read_csv(path, _class_names(options)) for path in options.tables]
    summary = cross_validation_summary(
        folds, resamples=options.resamples, seed=options.seed, level=options.level
    )
    _print(options, summary, summary_table(summary))


def _report(options: argparse.Namespace) -> None:
    # Only this command draws figures, and matplotlib takes most of a second to import.
    from densenet_flax.evaluation.report.report import write_report

    names = _class_names(options)
    in_use = "another process is writing a report into it; wait for it, or choose another directory"
    with locked(Path(options.directory), in_use, file=""):
        metrics = write_report(
            options.directory,
            read_csv(options.table, names),
            info={"title": options.title} if options.title else {},
            validation=read_csv(options.validation, names) if options.validation else None,
            rule=options.rule,
            resamples=options.resamples,
            seed=options.seed,
        )
    print(f"{verdict(metrics)}\n{options.directory}/report.html")


def _print(options: argparse.Namespace, result: Mapping[str, object], table: str) -> None:
    print(json.dumps(result, indent=2, allow_nan=False) if options.json else table, end="")


if __name__ == "__main__":
    sys.exit(main())
