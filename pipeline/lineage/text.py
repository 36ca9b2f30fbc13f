"""The tree on the terminal."""

import io
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text
from rich.tree import Tree

from components.adapters.page import plain
from pipeline.lineage.walk import LineageNode

NUM_STATISTICS_SHOWN, NUM_PLACINGS_SHOWN = 6, 3
FIRST = ("summary", "registered as", "cost", "teachers.", "aliases", "gate")
"""Statistics (or with a dot, beginnings of their names) that are shown before others."""
DIGEST_CHARS = 12


def rich_tree(node: LineageNode, into: Tree | None = None) -> Tree:
    """Return the tree for the terminal; below each artifact is what it was made from, or what was made from it."""
    label = _label(node)
    branch = Tree(label) if into is None else into.add(label)
    for other in (*node.parents, *node.children):
        rich_tree(other, branch)
    return branch


def title(node: LineageNode) -> str:
    """Return what a node is called."""
    return plain(node.name if node.stage in {"", node.name} else f"{node.name} ({node.stage})")


def facts(node: LineageNode) -> list[str]:
    """Return a node's few most telling statistics in words; what a summary says in one line needs no more numbers."""

    def rank(key: str) -> int:
        told = (place for place, one in enumerate(FIRST) if key == one or (one.endswith(".") and key.startswith(one)))
        return next(told, len(FIRST))

    ranked = sorted((key for key, value in node.statistics.items() if value != ""), key=rank)
    if node.statistics.get("summary"):
        ranked = [key for key in ranked if rank(key) < len(FIRST)]
    return [
        plain(str(node.statistics[key]) if key == "summary" else f"{key}={short(node.statistics[key])}")
        for key in ranked[:NUM_STATISTICS_SHOWN]
    ]


def short(value: Any) -> str:
    """Return a value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _label(node: LineageNode) -> Text:
    text = Text.assemble((title(node), "bold"), f"  {plain(node.digest[:DIGEST_CHARS])}  ", (plain(node.uri), "cyan"))
    if node.repeated:
        return text.append("  (see above)", style="dim")
    if node.problem:
        text.append(f"\n! {plain(node.problem)}", style="bold red")
    words = facts(node)
    if node.mlflow_run_id:
        words.insert(0, f"run {node.mlflow_run_id}")
    if words:
        text.append("\n" + ", ".join(words), style="dim")
    left_out = len(node.history) - NUM_PLACINGS_SHOWN
    if left_out > 0:
        text.append(f"\n{left_out} earlier changes: see --json", style="dim")
    for placing in node.history[-NUM_PLACINGS_SHOWN:]:
        text.append(f"\n{plain(placing.words)}", style="green" if placing.took else "yellow")
    if node.is_mention and node.earlier and not node.problem:
        text.append("\nof an earlier run; --generations shows what it was made from", style="dim")
    return text


def render(tree: LineageNode, width: int = 160) -> str:
    """Return the tree as plain text."""
    return plain_text(rich_tree(tree), width)


def plain_text(part: RenderableType, width: int = 160) -> str:
    """Return something for the terminal without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, soft_wrap=True)
    with console.capture() as capture:
        console.print(part)
    return capture.get()
