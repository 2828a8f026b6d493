"""The program that is `main.py` in a checkout and `densenet-flax` where the package is installed.

densenet-flax train --config=quickstart --workdir=runs/quickstart
densenet-flax evaluate --workdir=runs/quickstart
densenet-flax cross_validate --config=quickstart --workdir=runs/folds
densenet-flax predict --workdir=runs/quickstart --images='tiles/**/*.png'
densenet-flax slide --workdir=runs/quickstart --slides='slides/*.svs' --output=results
densenet-flax ensemble --members=runs/seed0,runs/seed1,runs/seed2 --output=runs/ensemble
densenet-flax export --workdir=runs/quickstart --output=exported
densenet-flax export --workdir=runs/quickstart --output=exported --for=hub
densenet-flax weights|data|evaluation …

`python main.py --mode=evaluate …` is the same. Logging and devices are set up here;
the flags are in `experiments/flags.py`, and the rest of the package does the work.
"""

import importlib
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import app, logging
from absl.flags import FLAGS, Error

from densenet_flax import __version__
from densenet_flax.common.console import show_package
from densenet_flax.common.errors import InputError, Stopped, one_line, path_errors
from densenet_flax.common.host_memory import tuned_host
from densenet_flax.common.overrides import Override, split_overrides
from densenet_flax.experiments import flags

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Functions import what they run: JAX takes seconds, and flags are checked before it is imported.


def _train(config: "ConfigDict") -> None:
    from densenet_flax.experiments.run import train_and_evaluate

    train_and_evaluate(config, str(flags.WORKDIR.value))


def _evaluate(config: "ConfigDict") -> None:
    from densenet_flax.experiments.run import evaluate

    evaluate(config, str(flags.WORKDIR.value), batch_size=flags.BATCH_SIZE.value)


def _cross_validate(config: "ConfigDict") -> None:
    from densenet_flax.experiments.cross_validation import cross_validate

    cross_validate(config, str(flags.WORKDIR.value))


def _preview(config: "ConfigDict") -> None:
    from densenet_flax.experiments.run import preview

    preview(config, str(flags.WORKDIR.value))


def _predict(_: "ConfigDict") -> None:
    from densenet_flax.inference.batch.outputs import OutputOptions
    from densenet_flax.inference.batch.predict_files import predict

    predict(
        str(flags.WORKDIR.value or flags.MODEL.value),
        str(flags.IMAGES.value),
        OutputOptions(
            output=Path(flags.OUTPUT.value or "predictions.csv").expanduser(),
            overlays=Path(flags.OVERLAYS.value).expanduser() if flags.OVERLAYS.value else None,
            embeddings=Path(flags.EMBEDDINGS.value).expanduser()
            if flags.EMBEDDINGS.value
            else None,
            unit=str(flags.UNIT.value),
            maps=str(flags.MAPS.value),
            overwrite=bool(flags.OVERWRITE.value),
        ),
        batch_size=flags.BATCH_SIZE.value,
    )


def _slide(_: "ConfigDict") -> None:
    from densenet_flax.inference.slides.predict_slides import predict_slides
    from densenet_flax.inference.slides.slide_options import SlideOptions, parse_lengths

    predict_slides(
        str(flags.WORKDIR.value or flags.MODEL.value),
        str(flags.SLIDES.value),
        SlideOptions(
            output=Path(str(flags.OUTPUT.value)).expanduser(),
            mpp=parse_lengths("--mpp", flags.MPP.value),
            field=parse_lengths("--field", flags.FIELD.value),
            stride=float(flags.STRIDE.value or 0),
            tissue=Path(flags.TISSUE.value).expanduser() if flags.TISSUE.value else None,
            min_tissue=float(flags.MIN_TISSUE.value or 0),
            verdict=str(flags.VERDICT.value),
            overwrite=bool(flags.OVERWRITE.value),
        ),
        batch_size=flags.BATCH_SIZE.value,
    ).check()


def _ensemble(_: "ConfigDict") -> None:
    from densenet_flax.experiments.ensemble_runs import make_ensemble

    make_ensemble(
        list(flags.MEMBERS.value or ()),
        str(flags.OUTPUT.value),
        combine=str(flags.COMBINE.value),
        overwrite=bool(flags.OVERWRITE.value),
    )


def _export(_: "ConfigDict") -> None:
    from densenet_flax import export

    network = str(flags.WORKDIR.value or flags.MODEL.value)
    output, overwrite = flags.OUTPUT.value or "exported", bool(flags.OVERWRITE.value)
    if flags.FOR.value:
        export.export_for_hub(network, output, overwrite=overwrite)
    else:
        export.export_classifier(network, output, formats=flags.FORMATS.value, overwrite=overwrite)


_RUN_MODE = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "slide": _slide,
    "cross_validate": _cross_validate,
    "preview": _preview,
    "ensemble": _ensemble,
    "export": _export,
}
_OTHER_PROGRAMS = ("weights", "data", "evaluation")  # of python -m densenet_flax.…

_overrides: list[Override] = []


def _config() -> "ConfigDict":
    """The configuration of --config or of the work directory, with the values of --config.KEY."""
    from densenet_flax.experiments.command_line import apply_overrides, load_config
    from densenet_flax.storage.workdir import Workdir

    mode = flags.chosen_mode()
    if path := flags.CONFIG.value:
        if mode.uses_network:
            logging.info("--mode=%s takes nothing from --config but cache_dir", flags.MODE.value)
        config = load_config(path)
    elif "config" not in mode.flags:  # what the run compiled is used again
        config = Workdir(str(flags.WORKDIR.value)).read_config() if flags.WORKDIR.value else {}
    else:
        config = Workdir(str(flags.WORKDIR.value)).require_config()
    return apply_overrides(config, _overrides)


def _fail(message: object) -> NoReturn:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(1)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; exits with one line on what is wrong with them."""
    name, *words = argv
    if {"-h", "-help", "--help"} & set(words):
        print(f"{__doc__}\n{FLAGS.module_help(flags.__name__)}")
        sys.exit(0)
    if words == ["--version"]:
        print(f"densenet_flax {__version__}")
        sys.exit(0)
    if words and not words[0].startswith("-"):  # densenet-flax evaluate …
        words[0] = f"--mode={words[0]}"
    try:
        expanded = FLAGS.read_flags_from_files([name, *words], force_gnu=False)
        rest, _overrides[:] = split_overrides(expanded)
        positional = FLAGS(rest)
        flags.check_flags(_overrides)
    except (Error, InputError, OSError) as error:
        _fail(error)
    if positional[1:]:
        _fail(f"unexpected argument {positional[1]!r}: options are written --name=value")
    return positional


def _set_up_logging() -> None:
    """Logs this package's messages without prefix, and the warnings of libraries."""
    show_package(logging.get_absl_handler())
    logging.set_verbosity(logging.INFO)


@contextmanager
def _joined_processes() -> Iterator[None]:
    """Runs with the other processes, if there are any, which have to be in the same mode."""
    from densenet_flax.common.processes import joined_processes
    from densenet_flax.common.sharding import require_equal

    timeout = float(flags.COORDINATOR_TIMEOUT.value or 0)
    with joined_processes(
        flags.COORDINATOR.value, flags.PROCESSES.value, flags.PROCESS.value, timeout
    ):
        require_equal({"--mode": flags.MODE.value})
        yield


def main(_: Sequence[str]) -> None:
    """Runs the mode; errors that the user can correct become one line and exit status 1."""
    _set_up_logging()
    try:
        with path_errors(), tuned_host():
            config = _config()
            from densenet_flax.experiments.session import set_up_jax

            set_up_jax(config)
            with _joined_processes():
                _RUN_MODE[str(flags.MODE.value)](config)
    except InputError as error:
        _fail(error)
    except Stopped as reason:
        print(one_line(reason), file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


def run() -> None:
    """Runs `main.py` or `densenet-flax`, or one of the other programs of the package."""
    if sys.argv[1:] and sys.argv[1] in _OTHER_PROGRAMS:
        program = importlib.import_module(f"densenet_flax.{sys.argv[1]}.__main__")
        sys.exit(program.main(sys.argv[2:]))
    app.run(main, flags_parser=_parse)
