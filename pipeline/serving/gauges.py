"""Counts of the service in Prometheus' text format (version 0.0.4).

prometheus_client would be one more dependency for four kinds of lines.
"""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

Labels = tuple[tuple[str, str], ...]

HELP = {
    "reasrm_requests_total": ("counter", "Requests by route and status."),
    "reasrm_request_seconds": ("histogram", "Seconds from the head of a request to its answer, by route and status."),
    "reasrm_judgments_total": ("counter", "Judgments by cause: ok, or why there is no verdict."),
    "reasrm_tokens_total": ("counter", "Tokens read (prompt) and written (completion)."),
    "reasrm_batch_prompts": ("histogram", "Prompts in one call of the engine."),
    "reasrm_judgments_promised": ("gauge", "Judgments that requests under way may still take."),
    "reasrm_judge_info": ("gauge", "Always 1; the label says which model judges."),
    "reasrm_ready": ("gauge", "1 while the judge can be asked."),
}
BUCKETS: dict[str, Sequence[float]] = {
    "reasrm_request_seconds": (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    "reasrm_batch_prompts": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}


class Gauges:
    """What is counted; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._buckets: dict[str, dict[Labels, list[int]]] = defaultdict(dict)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter or a gauge."""
        with self._lock:
            self._values[name][tuple(sorted(labels.items()))] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count a value in a histogram."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            counts = self._buckets[name].setdefault(key, [0] * (len(BUCKETS[name]) + 1))
            counts[bisect_left(BUCKETS[name], value)] += 1
            self._values[name][key] += value

    def text(self, now: Mapping[str, float]) -> str:
        """Return the exposition; `now` has the gauges whose value is only known at the moment."""
        with self._lock:
            return "".join(f"{line}\n" for name in HELP for line in self._lines(name, now))

    def _lines(self, name: str, now: Mapping[str, float]) -> Iterator[str]:
        kind, text = HELP[name]
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} {kind}"
        if name in now:
            yield f"{name} {now[name]:.17g}"
        elif kind != "histogram":
            yield from (f"{name}{_braces(labels)} {value:.17g}" for labels, value in self._values[name].items())
        else:
            for labels, counts in self._buckets[name].items():
                yield from self._histogram(name, labels, counts)

    def _histogram(self, name: str, labels: Labels, counts: Sequence[int]) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(str, BUCKETS[name]), "+Inf"), counts, strict=True):
            total += count
            yield f"{name}_bucket{_braces((*labels, ('le', bound)))} {total}"
        yield f"{name}_sum{_braces(labels)} {self._values[name][labels]:.17g}"
        yield f"{name}_count{_braces(labels)} {total}"


def _braces(labels: Labels) -> str:
    quoted = (f'{name}="{_escaped(value)}"' for name, value in labels)
    return "{" + ",".join(quoted) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
