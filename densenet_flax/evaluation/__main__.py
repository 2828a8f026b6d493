"""Judging prediction tables from the command line, without the network that made them."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from densenet_flax.common.errors import InputError
from densenet_flax.evaluation.metrics.bootstrap import LEVEL, RESAMPLES
from densenet_flax.evaluation.metrics.comparison import compare, comparison_table
from densenet_flax.evaluation.metrics.folds import cross_validation_summary, summary_table
from densenet_flax.evaluation.predictions import CLASS_NAMES
from densenet_flax.evaluation.predictions_csv import read_csv
from densenet_flax.evaluation.report.cautions import verdict
from densenet_flax.evaluation.report.report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 1 if the input is at fault."""
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
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
    text = argparse.ArgumentParser(add_help=False)
    text.add_argument("--level", type=float, default=LEVEL, help="(%(default)s)")
    text.add_argument("--json", action="store_true", help="print JSON instead of a table")

    command = commands.add_parser(
        "compare", parents=[common, text], help="two networks on the same test images"
    )
    command.add_argument("a", metavar="A.csv", help="predictions of the network to beat")
    command.add_argument("b", metavar="B.csv", help="predictions of the other")
    command.set_defaults(run=_compare)

    command = commands.add_parser(
        "folds", parents=[common, text], help="cross-validation: mean ± SD and pooled"
    )
    command.add_argument("tables", nargs="+", metavar="FOLD.csv", help="a table per fold")
    command.set_defaults(run=_folds)

    command = commands.add_parser("report", parents=[common], help="report.html of a table")
    command.add_argument("table", metavar="TEST.csv")
    command.add_argument("directory", metavar="DIRECTORY", help="where the report goes")
    command.add_argument("--validation", metavar="CSV", help="chooses threshold and temperature")
    command.add_argument(
        "--rule", default="fixed", help="fixed, youden or sensitivity>=0.95 (%(default)s)"
    )
    command.add_argument("--title", help="name of the page")
    command.set_defaults(run=_report)
    return parser


def _class_names(given: argparse.Namespace) -> tuple[str, ...] | None:
    return given.classes and tuple(name.strip() for name in given.classes.split(","))


def _compare(given: argparse.Namespace) -> None:
    a, b = (read_csv(path, _class_names(given)) for path in (given.a, given.b))
    result = compare(a, b, resamples=given.resamples, seed=given.seed, level=given.level)
    _print(given, result, comparison_table(result, given.a, given.b))


def _folds(given: argparse.Namespace) -> None:
    folds = [read_csv(path, _class_names(given)) for path in given.tables]
    summary = cross_validation_summary(
        folds, resamples=given.resamples, seed=given.seed, level=given.level
    )
    _print(given, summary, summary_table(summary))


def _report(given: argparse.Namespace) -> None:
    names = _class_names(given)
    metrics = write_report(
        given.directory,
        read_csv(given.table, names),
        info={"title": given.title} if given.title else {},
        validation=read_csv(given.validation, names) if given.validation else None,
        rule=given.rule,
        resamples=given.resamples,
        seed=given.seed,
    )
    print(f"{verdict(metrics)}\n{given.directory}/report.html")


def _print(given: argparse.Namespace, result: Mapping[str, object], text: str) -> None:
    print(json.dumps(result, indent=2, allow_nan=False) if given.json else text, end="")


if __name__ == "__main__":
    sys.exit(main())
