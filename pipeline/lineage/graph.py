"""The tree as a graph with a place for each node: a column a stage, arrows from what was read to what was made."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from components.core.manifest import SINCE, STAGES
from pipeline.lineage.walk import REGISTRY, RUN, SOURCE, LineageNode

COLUMNS = (SOURCE, *STAGES, REGISTRY, RUN)
BOX, GAP, ROW, HEAD, MARGIN, DEPTH = (132, 46), 44, 62, 34, 8, 16
"""Pixels: a box's width and height, the space between columns, from row to row, above the boxes, around it
all, and how much lower an arrow hangs for each column that it passes."""


_STAGE_OF_NAME = {"pairs": "prepare", SINCE: "prepare", "distillation": "filter"}
"""Where an artifact goes whose manifest is gone; models by any other name are from sft, or as good as."""


@dataclass(frozen=True)
class Box:
    """A node with its place in the picture (upper left corner, in pixels) and its number among all."""

    number: int
    node: LineageNode
    x: int = 0
    y: int = 0


@dataclass(frozen=True)
class Graph:
    """Boxes, arrows as SVG paths, the columns' headings with their places, and the size of it all in pixels."""

    boxes: tuple[Box, ...]
    arrows: tuple[str, ...]
    headings: tuple[tuple[int, str], ...]
    width: int
    height: int


def layout(trees: Iterable[LineageNode]) -> Graph:
    """Return the graph of some trees; a node that occurs several times is one box."""
    nodes: dict[tuple[str, str], LineageNode] = {}
    links: dict[tuple[tuple[str, str], tuple[str, str]], None] = {}
    for tree in trees:
        for node in tree.walk():
            key = _key(node)
            nodes[key] = _merged(nodes.get(key), node)
            links |= dict.fromkeys((_key(parent), key) for parent in node.parents)
            links |= dict.fromkeys((key, _key(child)) for child in node.children)
    columns: dict[str, list[tuple[str, str]]] = {name: [] for name in COLUMNS}
    for key, node in nodes.items():
        columns[_column(node)].append(key)
    used = {name: keys for name, keys in columns.items() if keys}
    rows = max(map(len, used.values()), default=0)
    boxes: dict[tuple[str, str], Box] = {}
    for place, keys in enumerate(used.values()):
        top = HEAD + MARGIN + (rows - len(keys)) * ROW // 2
        for row, key in enumerate(keys):
            boxes[key] = Box(len(boxes) + 1, nodes[key], MARGIN + place * (BOX[0] + GAP), top + row * ROW)
    return Graph(
        boxes=tuple(boxes.values()),
        arrows=tuple(_arrow(boxes[start], boxes[end]) for start, end in links),
        headings=tuple((MARGIN + place * (BOX[0] + GAP), name) for place, name in enumerate(used)),
        width=2 * MARGIN + len(used) * (BOX[0] + GAP) - GAP,
        height=HEAD + 2 * MARGIN + rows * ROW + DEPTH * len(used) * 3 // 4,
    )


def _key(node: LineageNode) -> tuple[str, str]:
    return ("" if node.is_artifact else node.name, node.uri)


def _merged(known: LineageNode | None, node: LineageNode) -> LineageNode:
    """Return the fuller of two mentions of a node, with the problems of both."""
    if known is None:
        return node
    problems = [problem for problem in dict.fromkeys([known.problem, node.problem]) if problem]
    fuller = node if not known.digest or (known.is_mention and not node.is_mention) else known
    return replace(fuller, problem="; ".join(problems))


def _column(node: LineageNode) -> str:
    if node.name == SOURCE:
        return SOURCE
    if node.stage in COLUMNS:
        return node.stage
    return node.name if node.name in COLUMNS else _STAGE_OF_NAME.get(node.name, "sft")


def _arrow(start: Box, end: Box) -> str:
    """Return a curve to the next column from side to side, and to one further on or back below what stands between.

    Within a column, from an earlier run to a later one, it goes from left side to left side.
    """
    span = (end.x - start.x) // (BOX[0] + GAP)
    if span == 0:
        y1, y2, x = start.y + BOX[1] // 2, end.y + BOX[1] // 2, max(start.x - GAP, 0)
        return f"M{start.x} {y1}C{x} {y1} {x} {y2} {end.x} {y2}"
    if span == 1:
        x1, y1, x2, y2 = start.x + BOX[0], start.y + BOX[1] // 2, end.x, end.y + BOX[1] // 2
        bend = max(abs(x2 - x1) // 2, GAP // 2)
        return f"M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
    x1, x2, y1, y2 = start.x + BOX[0] * 2 // 3, end.x + BOX[0] // 3, start.y + BOX[1], end.y + BOX[1]
    low = max(y1, y2) + DEPTH * abs(span)
    return f"M{x1} {y1}C{x1} {low} {x2} {low} {x2} {y2}"
