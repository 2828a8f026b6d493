"""Train, evaluate, cross-validate, predict and export.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart
    python main.py --config=configs/quickstart.py --workdir=runs/quickstart --mode=evaluate
    python main.py --config=configs/quickstart.py --workdir=runs/folds --mode=cross_validate
    python main.py --mode=predict --workdir=runs/quickstart --images='tiles/**/*.png'
    python main.py --mode=export --workdir=runs/quickstart --output=exported

It parses, sets up logging and devices, and hands over to `densenet_flax`; nothing else.
"""

import logging as python_logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from densenet_flax.common.host_memory import tuned_host

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept.")
_NEEDED = {  # mode -> flags that it cannot do without
    "train": ("config", "workdir"),
    "evaluate": ("config", "workdir"),
    "predict": ("images",),
    "cross_validate": ("config", "workdir"),
    "preview": ("config", "workdir"),
    "export": (),
}
_MODE = flags.DEFINE_enum("mode", "train", list(_NEEDED), "What to do.")

_IMAGES = flags.DEFINE_string("images", None, "To predict: a folder, a file or a pattern.")
_MODEL = flags.DEFINE_string("model", None, "A weights file to use, instead of a workdir.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "The table, .csv or .parquet (predictions.csv); or the folder (exported)."
)
_FORMATS = flags.DEFINE_list(
    "formats", None, "To export: stablehlo, onnx, keras; by default all that can be made."
)
_OVERLAYS = flags.DEFINE_string("overlays", None, "Folder for a picture of each image's map.")
_UNIT = flags.DEFINE_string("unit", "norm", "Of these maps: 'norm', or earlier and finer ones.")
_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "File for features: .npy or .parquet.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace outputs that are there already.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "To predict; by default as in training.")

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of several processes: 'auto', or address:port of the first one."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes; not with 'auto'.")
_PROCESS = flags.DEFINE_integer("process", 0, "Which one this is, from 0; not with 'auto'.")


def _fail(message: object) -> NoReturn:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(1)


def _parse(argv: Sequence[str]) -> list[str]:
    """Flags and configuration, or one line on what is wrong with them."""
    given = [a.partition("=")[2] for a in argv if a.lstrip("-").split("=")[0] == "config"]
    path = given[-1].split(":")[0] if given else ""
    if path and not os.path.isfile(path):
        _fail(f"--config={path}: no such file; the configurations are in configs/")
    try:
        rest = flags.FLAGS(argv)
        if given:
            _ = _CONFIG.value.to_dict()  # a configuration that failed to load says so when read
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        cause: object = error
        while isinstance(cause, Exception) and cause.args:  # ml_collections wraps them
            cause = cause.args[0]
        text = str(cause)
        _fail(text.strip().splitlines()[-1] if "Traceback" in text else text)
    for flag in _NEEDED[_MODE.value]:
        if not flags.FLAGS[flag].value:
            _fail(f"--{flag}=… is missing; see the top of main.py")
    if _MODE.value in ("predict", "export") and bool(_WORKDIR.value) == bool(_MODEL.value):
        _fail(f"--mode={_MODE.value} needs --workdir=RUN or --model=FILE, one of the two")
    if rest[1:]:
        _fail(f"unexpected argument {rest[1]!r}: options are written --name=value")
    return rest


def _set_up_logging() -> None:
    """Our own messages, bare; of the libraries, only their warnings."""
    here = os.path.dirname(os.path.abspath(__file__))
    ours = (os.path.join(here, "densenet_flax"), os.path.abspath(__file__))
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(message)s"))
    handler.addFilter(lambda r: r.pathname.startswith(ours) or r.levelno >= python_logging.WARNING)
    logging.set_verbosity(logging.INFO)


def _predict() -> None:
    """Predicts the images with the network of the work directory or file."""
    from densenet_flax.inference.batch import OutputOptions, predict

    predict(
        str(_WORKDIR.value or _MODEL.value),
        str(_IMAGES.value),
        OutputOptions(
            output=Path(_OUTPUT.value or "predictions.csv").expanduser(),
            overlays=Path(_OVERLAYS.value).expanduser() if _OVERLAYS.value else None,
            embeddings=Path(_EMBEDDINGS.value).expanduser() if _EMBEDDINGS.value else None,
            unit=str(_UNIT.value),
            overwrite=bool(_OVERWRITE.value),
        ),
        batch_size=_BATCH_SIZE.value,
    )


def _export() -> None:
    """Writes the network of the work directory or file for use without this package."""
    from densenet_flax import export

    export.export_classifier(
        str(_WORKDIR.value or _MODEL.value),
        _OUTPUT.value or "exported",
        formats=_FORMATS.value,
        overwrite=bool(_OVERWRITE.value),
    )


def main(_: Sequence[str]) -> None:
    """Runs the mode under the host settings that XLA's CPU backend wants."""
    with tuned_host():
        _run()


def _run() -> None:
    """Runs the mode and turns what the user can mend into one line and exit status 1."""
    _set_up_logging()
    import jax  # after the flags are known to be right: importing it takes seconds

    from densenet_flax.common.errors import InputError, Stopped
    from densenet_flax.common.sharding import start_processes
    from densenet_flax.experiments import cross_validation
    from densenet_flax.experiments import run as experiment

    if _COORDINATOR.value:
        try:
            start_processes(
                _COORDINATOR.value, int(_PROCESSES.value or 1), int(_PROCESS.value or 0)
            )
        except InputError as error:
            _fail(error)
    modes: dict[str, Callable[[Any, str], Any]] = {
        "train": experiment.train_and_evaluate,
        "evaluate": experiment.evaluate,
        "preview": experiment.preview,
        "cross_validate": cross_validation.cross_validate,
        "predict": lambda *_: _predict(),
        "export": lambda *_: _export(),
    }
    try:
        place = str(_WORKDIR.value or "")
        config = _CONFIG.value or experiment.config_of_run(place)
        cache = experiment.cache_directory(config) / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        modes[_MODE.value](config, place)
    except InputError as error:
        _fail(error)
    except Stopped as reason:
        print(reason, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
