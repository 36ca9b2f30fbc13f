"""The lineage as one HTML page that needs no network: the graph as a picture, and below it each node in full."""

from collections.abc import Sequence
from pathlib import Path

from components.adapters.page import render_page, shown
from pipeline.lineage.graph import BOX, HEAD, Box, layout
from pipeline.lineage.text import DIGEST_CHARS, short, title
from pipeline.lineage.verify import Finding
from pipeline.lineage.walk import REGISTRY, SOURCE, LineageNode

TEMPLATE = Path(__file__).parent / "page.html.jinja"
MAX_NAME, MAX_VALUE = 18, 600


def render_html(
    reference: str, tree: LineageNode, below: Sequence[LineageNode], findings: Sequence[Finding] | None = None
) -> str:
    """Return the page; `findings` are those of `verify`, None where nothing was hashed again."""
    graph = layout([tree, *below])
    problems = {finding.uri: finding.drift for finding in findings or () if finding.drift}
    rows = [_row(box, problems.get(box.node.uri, ())) for box in graph.boxes]
    return render_page(
        TEMPLATE,
        reference=reference,
        graph=graph,
        box=BOX,
        head=HEAD - 12,
        rows=rows,
        listed=sorted(rows, key=lambda row: row["key"] != _same(tree)),  # what was asked for comes first
        start=_same(tree),
        num_problems=sum(bool(row["problems"]) for row in rows),
        verified=findings is not None,
        num_bytes=sum(finding.num_bytes for finding in findings or ()),
        notes=[f"{finding.uri}: {finding.note}" for finding in findings or () if finding.note],
    )


def _same(node: LineageNode) -> tuple[str, str]:
    return (node.name, node.uri)


def _file(node: LineageNode) -> str:
    return node.uri.rstrip("/").rpartition("/")[2]


def _row(box: Box, drift: Sequence[str]) -> dict[str, object]:
    node = box.node
    name = node.name if node.stage == REGISTRY else f"source {_file(node)}" if node.name == SOURCE else title(node)
    label = _file(node) if node.name == SOURCE else name
    return {
        "box": box,
        "key": _same(node),
        "name": name,
        "short": label if len(label) <= MAX_NAME else f"{label[: MAX_NAME - 1]}…",
        "digest": node.digest[:DIGEST_CHARS],
        "facts": [(key, shown(short(value), MAX_VALUE)) for key, value in node.statistics.items()],
        "history": [placing.words for placing in node.history],
        "problems": list(dict.fromkeys([*([node.problem] if node.problem else []), *drift])),
    }
