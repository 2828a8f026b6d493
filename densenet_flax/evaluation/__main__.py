"""Evaluates prediction tables from the command line, without the network that made them."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from densenet_flax.common.errors import InputError, path_errors, printable
from densenet_flax.evaluation.metrics.bootstrap import LEVEL, RESAMPLES
from densenet_flax.evaluation.metrics.comparison import (
    compare,
    compare_networks,
    comparison_table,
    networks_table,
)
from densenet_flax.evaluation.metrics.folds import cross_validation_summary, summary_table
from densenet_flax.evaluation.predictions import CLASS_NAMES
from densenet_flax.evaluation.predictions_csv import read_csv
from densenet_flax.evaluation.report.cautions import verdict
from densenet_flax.storage.locks import locked

_TABLE = "predictions.csv"


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
        "compare", parents=[common, printed], help="networks on the same test images"
    )
    command.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="two or more work directories that were evaluated, or tables of predictions (.csv)",
    )
    command.add_argument("--baseline", default="", metavar="RUN", help="compare all with this one")
    command.add_argument(
        "--metric", default="", help="of the verdict (roc_auc; macro_roc_auc of several classes)"
    )
    command.add_argument("--output", metavar="DIRECTORY", help="write a page with figures here")
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
    files = dict.fromkeys([*options.runs, *filter(None, [options.baseline])])
    names = _names([*files])
    tables = {
        name: read_csv(_predictions_of(run), _class_names(options))
        for name, run in zip(names, files, strict=True)
    }
    if len(tables) == 2 and not (options.output or options.baseline or options.metric):
        a, b = tables.values()
        result = compare(a, b, options.resamples, options.seed, options.level)
        _print(options, result, comparison_table(result, *files))
        return
    settings = {
        "baseline": names[[*files].index(options.baseline)] if options.baseline else "",
        "metric": options.metric,
        "resamples": options.resamples,
        "seed": options.seed,
        "level": options.level,
    }
    if options.output:
        from densenet_flax.evaluation.report.comparison_report import (
            comparison_verdict,
            write_comparison_report,
        )

        result = write_comparison_report(options.output, tables, **settings)
        _print(options, result, f"{comparison_verdict(result)}\n{options.output}/report.html\n")
        return
    result = compare_networks(tables, **settings)
    _print(options, result, networks_table(result))


def _predictions_of(run: str) -> Path:
    """The table of a work directory, of its report, or the file itself."""
    path = Path(run).expanduser()
    if not path.is_dir():
        return path
    tables = [path / "report" / _TABLE, path / _TABLE]
    for table in tables:
        if table.is_file():
            return table
    raise InputError(
        f"{run}: has no report/{_TABLE}; evaluate the run first (main.py --mode=evaluate "
        f"--workdir={run}), or name a table"
    )


def _names(runs: Sequence[str]) -> list[str]:
    """Short names that tell the runs apart: the last parts of their paths that differ."""
    parts = [
        [part for part in Path(run).with_suffix("").parts if part not in ("report", "predictions")]
        for run in runs
    ]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names) and all(names):
            return names
    return list(runs)


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
    written = Path(options.directory, "predictions.csv")
    for table in filter(None, (options.table, options.validation)):
        if written.exists() and written.samefile(table):
            raise InputError(
                f"{table}: the report would be written over this table; choose another directory"
            )
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
    print(printable(verdict(metrics)), printable(f"{options.directory}/report.html"), sep="\n")


def _print(options: argparse.Namespace, result: Mapping[str, object], table: str) -> None:
    print(json.dumps(result, indent=2, allow_nan=False) if options.json else table, end="")


if __name__ == "__main__":
    sys.exit(main())
