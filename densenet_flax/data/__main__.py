"""Prints what a split of BreakHis holds, or draws whole slides.

    python -m densenet_flax.data table --path=BreaKHis_v1 --policy=official --fold=1
    python -m densenet_flax.data table --path=dsfold1.txt --split=runs/x/split.json
    python -m densenet_flax.data draw-slides --output=slides --slides=2 --mpp=0.5

`--path` is a folder, the archive, or a text file with a name a line; no image is decoded. Drawn
slides are pyramidal TIFF files of a few megabytes that show what drawn tiles show, with tissue,
glass, marks of a pen, and a malignant region near each corner and in the middle; a JSON file beside
each says where they are. Several values of --mpp write each slide at each of these resolutions.
"""

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densenet_flax.common.errors import InputError, path_errors
from densenet_flax.common.settings import Settings, parse_text
from densenet_flax.data.breakhis.name_list import dataset_of_names, list_file_names
from densenet_flax.data.splits.policies import make_split
from densenet_flax.data.splits.split import load_split
from densenet_flax.data.splits.split_config import POLICIES, SplitConfig
from densenet_flax.data.splits.split_table import format_split
from densenet_flax.data.synthetic.slide_files import DrawnSlides, write_drawn_slides


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m densenet_flax.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("table", help="print patients, images and the overlap of a split")
    show.add_argument("--path", required=True, help="folder, archive, or text file of file names")
    show.add_argument("--split", help="a saved split.json, instead of a policy")
    show.add_argument("--policy", default="patient", choices=POLICIES)
    show.add_argument("--labels", default="binary", choices=("binary", "subtype"))
    show.add_argument("--mixed_patients", default="error", choices=("error", "rarest"))
    for key in ("group", "fold", "folds", "test_fraction", "validation_fraction", "seed"):
        default = getattr(SplitConfig, key)
        show.add_argument(f"--{key}", type=type(default), default=default)
    draw = commands.add_parser("draw-slides", help="draw whole slides, to try --mode=slide with")
    draw.add_argument("--output", required=True, help="folder for the slides")
    for key, hint in DrawnSlides.hints().items():
        default = getattr(DrawnSlides, key)
        draw.add_argument(
            f"--{key}", type=functools.partial(parse_text, hint=hint), default=default
        )
    options = parser.parse_args(arguments)
    try:
        with path_errors():
            if options.command == "table":
                _print_table(options)
            else:
                _draw_slides(options)
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough; nothing more can be written, at the end too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _print_table(options: argparse.Namespace) -> None:
    dataset = dataset_of_names(list_file_names(options.path), options.labels, options.path)
    if options.split:
        split = load_split(options.split, dataset)
    else:
        split = make_split(dataset, SplitConfig.from_config(_chosen(options, SplitConfig), "split"))
    print(format_split(split, dataset))


def _draw_slides(options: argparse.Namespace) -> None:
    settings = DrawnSlides.from_config(_chosen(options, DrawnSlides), "draw-slides")
    for path in write_drawn_slides(Path(options.output).expanduser(), settings):
        print(path)


def _chosen(options: argparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    known = settings.keys()
    return {key: value for key, value in vars(options).items() if key in known}


if __name__ == "__main__":
    sys.exit(main())
