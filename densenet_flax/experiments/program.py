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

`python main.py --mode=evaluate …` is the same. Flags, logging and devices are set up here; the rest
of the package does the work.
"""

import importlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from absl import app, flags, logging

from densenet_flax import __version__
from densenet_flax.common.console import show_package
from densenet_flax.common.errors import InputError, Stopped, one_line, path_errors
from densenet_flax.common.host_memory import tuned_host
from densenet_flax.common.overrides import Override, split_overrides

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Functions import what they run: JAX takes seconds, and flags are checked before it is imported.


def _train(config: "ConfigDict") -> None:
    from densenet_flax.experiments.run import train_and_evaluate

    train_and_evaluate(config, str(_WORKDIR.value))


def _evaluate(config: "ConfigDict") -> None:
    from densenet_flax.experiments.run import evaluate

    evaluate(config, str(_WORKDIR.value), batch_size=_BATCH_SIZE.value)


def _cross_validate(config: "ConfigDict") -> None:
    from densenet_flax.experiments.cross_validation import cross_validate

    cross_validate(config, str(_WORKDIR.value))


def _preview(config: "ConfigDict") -> None:
    from densenet_flax.experiments.run import preview

    preview(config, str(_WORKDIR.value))


def _predict(_: "ConfigDict") -> None:
    from densenet_flax.inference.batch.outputs import OutputOptions
    from densenet_flax.inference.batch.predict_files import predict

    predict(
        str(_WORKDIR.value or _MODEL.value),
        str(_IMAGES.value),
        OutputOptions(
            output=Path(_OUTPUT.value or "predictions.csv").expanduser(),
            overlays=Path(_OVERLAYS.value).expanduser() if _OVERLAYS.value else None,
            embeddings=Path(_EMBEDDINGS.value).expanduser() if _EMBEDDINGS.value else None,
            unit=str(_UNIT.value),
            maps=str(_MAPS.value),
            overwrite=bool(_OVERWRITE.value),
        ),
        batch_size=_BATCH_SIZE.value,
    )


def _slide(_: "ConfigDict") -> None:
    from densenet_flax.inference.slides.predict_slides import predict_slides
    from densenet_flax.inference.slides.slide_options import SlideOptions, parse_lengths

    predict_slides(
        str(_WORKDIR.value or _MODEL.value),
        str(_SLIDES.value),
        SlideOptions(
            output=Path(str(_OUTPUT.value)).expanduser(),
            mpp=parse_lengths("--mpp", _MPP.value),
            field=parse_lengths("--field", _FIELD.value),
            stride=float(_STRIDE.value or 0),
            tissue=Path(_TISSUE.value).expanduser() if _TISSUE.value else None,
            min_tissue=float(_MIN_TISSUE.value or 0),
            verdict=str(_VERDICT.value),
            overwrite=bool(_OVERWRITE.value),
        ),
        batch_size=_BATCH_SIZE.value,
    ).check()


def _ensemble(_: "ConfigDict") -> None:
    from densenet_flax.experiments.ensemble_runs import make_ensemble

    make_ensemble(
        list(_MEMBERS.value or ()),
        str(_OUTPUT.value),
        combine=str(_COMBINE.value),
        overwrite=bool(_OVERWRITE.value),
    )


def _export(_: "ConfigDict") -> None:
    from densenet_flax import export

    network, output = str(_WORKDIR.value or _MODEL.value), _OUTPUT.value or "exported"
    overwrite = bool(_OVERWRITE.value)
    if _FOR.value:
        export.export_for_hub(network, output, overwrite=overwrite)
    else:
        export.export_classifier(network, output, formats=_FORMATS.value, overwrite=overwrite)


class _Mode(NamedTuple):
    run: Callable[["ConfigDict"], None]
    flags: tuple[str, ...]  # that it takes, apart from those of every mode
    required_flags: tuple[str, ...]
    uses_network: bool = False  # which comes with its configuration


_NETWORK_FLAGS = ("workdir", "model", "output", "overwrite")
_SLIDE_FLAGS = ("slides", "mpp", "field", "stride", "tissue", "min_tissue", "verdict")
_RUN = ("config", "workdir")
_MODES = {
    "train": _Mode(_train, _RUN, ("workdir",)),
    "evaluate": _Mode(_evaluate, (*_RUN, "batch_size"), ("workdir",)),
    "predict": _Mode(
        _predict,
        (*_NETWORK_FLAGS, "images", "overlays", "maps", "unit", "embeddings", "batch_size"),
        ("images",),
        uses_network=True,
    ),
    "slide": _Mode(
        _slide,
        (*_NETWORK_FLAGS, *_SLIDE_FLAGS, "batch_size"),
        ("slides", "output"),
        uses_network=True,
    ),
    "cross_validate": _Mode(_cross_validate, _RUN, _RUN),
    "preview": _Mode(_preview, _RUN, ("workdir",)),
    "ensemble": _Mode(
        _ensemble, ("members", "output", "combine", "overwrite"), ("members", "output")
    ),
    "export": _Mode(_export, (*_NETWORK_FLAGS, "formats", "for"), (), uses_network=True),
}

_CONFIG = flags.DEFINE_string(
    "config", None, "The experiment, a Python file; by default the one of the work directory."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_enum("mode", "train", list(_MODES), "What to do.")

_IMAGES = flags.DEFINE_string("images", None, "To predict: a folder, a file or a pattern.")
_MODEL = flags.DEFINE_string(
    "model", None, "A weights file, or hf://owner/name, instead of --workdir."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "The table, .csv or .parquet (predictions.csv); or the folder, of slides, an ensemble or an "
    "export (exported).",
)
_SLIDES = flags.DEFINE_string(
    "slides", None, "Slides: a folder, a file or a pattern such as 'slides/**/*.svs'."
)
_MPP = flags.DEFINE_list(
    "mpp",
    None,
    "Micrometers per pixel of the slides at full resolution, such as 0.25, or down,across; instead "
    "of what their files state.",
)
_FIELD = flags.DEFINE_list(
    "field",
    None,
    "Height,width in micrometers of the tissue that one input of the network shows; instead of "
    "what the network says itself, from the config.data.mpp of its training.",
)
_STRIDE = flags.DEFINE_float(
    "stride", 1.0, "From one tile to the next, as a share of the field; below 1 tiles overlap."
)
_TISSUE = flags.DEFINE_string(
    "tissue",
    None,
    "Where the tissue is: a mask (an image of the whole slide, tissue not black) or a GeoJSON of "
    "regions; or a folder with one for each slide, of its name. By default it is found by color.",
)
_MIN_TISSUE = flags.DEFINE_float(
    "min_tissue", 0.5, "Share of a tile that has to be tissue, or the tile is left out."
)
_VERDICT = flags.DEFINE_string(
    "verdict",
    "mean",
    "How a slide is decided: by the 'mean' probability of its tiles, as evaluations decide "
    "patients, or by the mean of those with the highest, such as 'top-10'. The threshold is that "
    "of the run's evaluation for both, and calls more slides positive with the second.",
)
_MEMBERS = flags.DEFINE_list("members", None, "Of an ensemble: work directories, with commas.")
_COMBINE = flags.DEFINE_enum(
    "combine",
    "probabilities",
    ["probabilities", "logits", "stacking"],
    "What an ensemble is the mean of; 'stacking': of logits, with weights fitted on validation.",
)
_FORMATS = flags.DEFINE_list(
    "formats", None, "To export: stablehlo, onnx, keras (by default all that can be made), wsinfer."
)
_FOR = flags.DEFINE_enum(
    "for", None, ["hub"], "To export: a folder for the Hugging Face Hub, in place of --formats."
)
_OVERLAYS = flags.DEFINE_string("overlays", None, "Folder for a saliency map of each image.")
_MAPS = flags.DEFINE_enum(
    "maps", "cam", ["cam", "occlusion"], "How saliency maps are made; occlusion takes far longer."
)
_UNIT = flags.DEFINE_string(
    "unit", "norm", "Unit of the maps and the features: 'norm', the last, or an earlier one."
)
_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "File for features: .npy or .parquet.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace outputs that exist.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "To predict or evaluate; by default as in training.", lower_bound=1
)
_THIS = "densenet_flax.experiments.program"  # also where it is the main module
_OTHER_PROGRAMS = ("weights", "data", "evaluation")  # of python -m densenet_flax.…
_MODE_FLAGS = {name for mode in _MODES.values() for name in mode.flags}

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of several processes: 'auto', or address:port of the first one."
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes; not with 'auto'.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer(
    "process", None, "Number of this one, from 0; not with 'auto'.", lower_bound=0
)
_COORDINATOR_TIMEOUT = flags.DEFINE_float(
    "coordinator_timeout", 40, "Seconds to wait at the start for the other processes.", 1
)

_overrides: list[Override] = []


def _config(mode: _Mode) -> "ConfigDict":
    """The configuration of --config or of the work directory, with the values of --config.KEY."""
    from densenet_flax.experiments.command_line import apply_overrides, load_config
    from densenet_flax.storage.workdir import Workdir

    if path := _CONFIG.value:
        if mode.uses_network:
            logging.info("--mode=%s takes nothing from --config but cache_dir", _MODE.value)
        config = load_config(path)
    elif "config" not in mode.flags:  # what the run compiled is used again
        config = Workdir(str(_WORKDIR.value)).read_config() if _WORKDIR.value else {}
    else:
        config = Workdir(str(_WORKDIR.value)).require_config()
    return apply_overrides(config, _overrides)


def _fail(message: object) -> NoReturn:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(1)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; exits with one line on what is wrong with them."""
    name, *words = argv
    if {"-h", "-help", "--help"} & set(words):
        print(f"{__doc__}\n{flags.FLAGS.module_help(_THIS)}")
        sys.exit(0)
    if words == ["--version"]:
        print(f"densenet_flax {__version__}")
        sys.exit(0)
    if words and not words[0].startswith("-"):  # densenet-flax evaluate …
        words[0] = f"--mode={words[0]}"
    try:
        expanded = flags.FLAGS.read_flags_from_files([name, *words], force_gnu=False)
        rest, _overrides[:] = split_overrides(expanded)
        positional = flags.FLAGS(rest)
    except (flags.Error, OSError) as error:
        _fail(error)
    _check_flags(_MODES[str(_MODE.value)])
    if positional[1:]:
        _fail(f"unexpected argument {positional[1]!r}: options are written --name=value")
    return positional


def _check_flags(mode: _Mode) -> None:
    """Refuses flags that are missing or have no effect."""
    name = f"--mode={_MODE.value}"
    for flag in mode.required_flags:
        if not flags.FLAGS[flag].value:
            _fail(f"{name}: --{flag}=… is missing; see --help")
    if mode.uses_network and bool(_WORKDIR.value) == bool(_MODEL.value):
        _fail(f"{name} needs --workdir=RUN or --model=FILE, one of the two")
    for flag in sorted(_MODE_FLAGS - {*mode.flags, "config"}):
        if flags.FLAGS[flag].present:
            users = ", ".join(other for other in _MODES if flag in _MODES[other].flags)
            _fail(f"--{flag}: has no effect with {name}, only with {users}; leave it out")
    for key, _ in _overrides if "config" not in mode.flags else ():
        if key != "cache_dir":
            _fail(
                f"--config.{key}: has no effect with {name}, which uses a network as it was "
                "trained and evaluated; change it with --mode=train or --mode=evaluate"
            )
    if flags.FLAGS["maps"].present and not _OVERLAYS.value:
        _fail("--maps: has no effect without --overlays; add it, or leave --maps out")
    if flags.FLAGS["unit"].present and _MAPS.value == "occlusion" and not _EMBEDDINGS.value:
        _fail("--unit: has no effect with --maps=occlusion, which hides parts of the image itself")
    if flags.FLAGS["unit"].present and not (_OVERLAYS.value or _EMBEDDINGS.value):
        _fail(
            "--unit: has no effect without --overlays or --embeddings; add one, or leave --unit out"
        )
    if _FORMATS.value and _FOR.value:
        _fail("--formats: has no effect with --for; leave one of them out")
    if mode.uses_network and _COORDINATOR.value:
        if "slides" in mode.flags:
            advice = "start the same command several times: each process takes slides of its own"
        else:
            advice = "to predict on several hosts give each its own --images and --output"
        _fail(f"--coordinator: {name} does without; leave it out, and {advice}")
    for flag in ("processes", "process", "coordinator_timeout"):
        not_with_auto = _COORDINATOR.value == "auto" and flag != "coordinator_timeout"
        if flags.FLAGS[flag].present and (not_with_auto or not _COORDINATOR.value):
            _fail(f"--{flag}: has no effect without --coordinator=ADDRESS:PORT; add it")


def _set_up_logging() -> None:
    """Logs this package's messages without prefix, and the warnings of libraries."""
    show_package(logging.get_absl_handler())
    logging.set_verbosity(logging.INFO)


@contextmanager
def _joined_processes() -> Iterator[None]:
    """Runs with the other processes, if there are any, which have to be in the same mode."""
    from densenet_flax.common.processes import joined_processes
    from densenet_flax.common.sharding import require_equal

    timeout = float(_COORDINATOR_TIMEOUT.value or 0)
    with joined_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, timeout):
        require_equal({"--mode": _MODE.value})
        yield


def main(_: Sequence[str]) -> None:
    """Runs the mode; errors that the user can correct become one line and exit status 1."""
    _set_up_logging()
    mode = _MODES[str(_MODE.value)]
    try:
        with path_errors(), tuned_host():
            config = _config(mode)
            from densenet_flax.experiments.session import set_up_jax

            set_up_jax(config)
            with _joined_processes():
                mode.run(config)
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
