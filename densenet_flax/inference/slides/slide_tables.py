"""The tables of a job: the tiles of a slide, and one row for each slide."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from densenet_flax.inference.batch.table_writer import (
    decided_classes,
    prediction_columns,
    write_table,
)
from densenet_flax.inference.slides.slide_result import SlideResult

Row: TypeAlias = dict[str, str | int | float]

DONE, FAILED = "done", "failed"


def write_tiles(path: Path, result: SlideResult) -> None:
    """Writes a `.parquet` file with a row for each tile that was predicted.

    Its place is that of its upper left corner: in pixels of level 0 (`y`, `x`) and in micrometers
    (`y_um`, `x_um`).
    """
    grid = result.grid
    columns = {
        "row": grid.rows,
        "column": grid.columns,
        "y": grid.y,
        "x": grid.x,
        "y_um": grid.y * result.mpp[0],
        "x_um": grid.x * result.mpp[1],
        "tissue": result.tissue.fraction(grid.y, grid.x, *grid.field_px),
    }
    write_table(path, [{**columns, **prediction_columns(result.prediction)}])


def slide_row(result: SlideResult) -> Row:
    """The row of a slide in `slides.csv`."""
    counts = decided_classes(result.prediction)
    tiles = {f"tiles_{name}": counts.count(name) for name in result.network.class_names}
    verdict = {
        name: values[0] if isinstance(values, list) else values.tolist()[0]
        for name, values in prediction_columns(result.verdict).items()
    }
    return {
        "status": DONE,
        **verdict,
        "verdict_rule": result.rule,
        "tiles": len(result.grid),
        **tiles,
        "damaged_tiles": len(result.damaged),
        "height": result.size[0],
        "width": result.size[1],
        "mpp_y": result.mpp[0],
        "mpp_x": result.mpp[1],
        "mpp_source": result.mpp_source,
        "field_height_um": result.field_um[0],
        "field_width_um": result.field_um[1],
    }


def failed_row(problem: str) -> Row:
    """The row of a slide that cannot be predicted."""
    return {"status": FAILED, "problem": problem}


def write_slides(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes `slides.csv`; a cell is empty where a slide has no value of a column."""
    names = dict.fromkeys(("slide", "file", "status"))
    for row in rows:
        names |= dict.fromkeys(row)
    names.pop("problem", None)
    columns = [*names, "problem"]
    write_table(path, [{name: [str(row.get(name, "")) for row in rows] for name in columns}])
