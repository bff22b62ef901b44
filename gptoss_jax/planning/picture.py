"""Memory of slices as stacked bars beside their capacity."""

from pathlib import Path

from gptoss_jax.planning.chips import GIB
from gptoss_jax.planning.report import Report

_PARTS = ("weights", "kv_cache", "adapters", "optimizer", "temporaries")


def draw(rows: list[Report], file: Path) -> None:
    """Writes a picture: a bar a slice, of one device's memory, its capacity as a line.

    Raises:
      OSError: the file cannot be written.
      ValueError: its ending is of no picture.
    """
    # Late: it takes half a second to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 1.1 * max(len(rows), 4), 5), layout="constrained")
    axes = figure.add_subplot(ylabel="GiB a device")
    places = range(len(rows))
    sizes = [row.as_dict()["bytes"] for row in rows]
    below = [0.0] * len(rows)
    for part in _PARTS:
        if not any(part in size for size in sizes):
            continue
        heights = [size.get(part, 0) / GIB for size in sizes]
        axes.bar(places, heights, bottom=below, width=0.6, label=part.replace("_", " "))
        below = [base + height for base, height in zip(below, heights, strict=True)]
    capacity = [size["capacity"] / GIB for size in sizes]
    left, right = [x - 0.4 for x in places], [x + 0.4 for x in places]
    axes.hlines(capacity, left, right, colors="black", label="capacity")
    axes.set_xticks(places, [_label(row) for row in rows], rotation=30, ha="right")
    figure.legend(loc="outside upper center", ncols=4)
    figure.savefig(file)


def _label(row: Report) -> str:
    by = "" if row.compiled else " (arithmetic)"
    return f"{row.slice.name}{by}"
