"""The work of `prepare`: index the benchmarks, read and sieve the sources, split, write, probe."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from components.adapters.reading import Row, named, read_source, source_digest
from components.adapters.stage import Inputs, Output
from components.core.errors import InvalidInput
from components.core.records import write_lines
from components.core.sources import SourceSettings
from components.prepare.accepted import Accepted
from components.prepare.before import (
    FROZEN,
    SEEN_FILE,
    TRAINED_FILE,
    Before,
    open_before,
    write_seen,
    write_trained,
)
from components.prepare.config import Config
from components.prepare.drift import Shift, check_drift, compare, relabelling, sample_pairs
from components.prepare.examine import Examiner
from components.prepare.forms import detect
from components.prepare.overlap import index_benchmarks
from components.prepare.parts import Tally, Writer
from components.prepare.probe import Probe, ProbeReader, run_probe
from components.prepare.renew import describe_renewal, nothing_new, renew
from components.prepare.sieve import Sieve
from components.prepare.split import PARTS, Part, Split, part_of
from components.prepare.statistics import describe, describe_rows
from components.prepare.workers import Workers, open_workers

logger = logging.getLogger(__name__)

CHUNK_ROWS = 128
OVERLAP_FILE = "overlap.bin"


def run(settings: Config, inputs: Inputs, output: Output) -> dict[str, Any]:
    """Write the three parts, the quarantine and the index of the benchmarks; return the statistics.

    Raises:
        InvalidInput: a source or a benchmark is missing or broken, too many rows are bad, a part would be empty, or
            the label can be told from the words of the judge prompt alone.
    """
    path = output.workdir / "accepted.jsonl"
    with (
        (output.directory / "quarantine.jsonl").open("wb") as quarantine,
        path.open("w+b") as file,
        open_workers(settings.processes) as workers,
    ):
        benchmarks, index = _index(settings, output, quarantine)
        before = open_before(settings, output)
        if before is not None:
            settings = settings.model_copy(update={"sources": (*before.sources, *settings.sources)})
        sieve = Sieve(settings, quarantine, Accepted(file), before)
        examiner = Examiner(settings, index, len(before.sources) if before else 0)
        sources = _read(settings, output, sieve, examiner, workers, before)
        split = _split(settings, output, sieve, before)
        file.flush()
        renewal = describe_renewal(split, sieve, before) if before else None
        sieve.tell_of_known()
        why = nothing_new(split, sieve, settings) if before else ""
        if why:
            output.summary = f"nothing new: {why}"
            output.tracking.set_tags({"reasrm.nothing_new": "true"})  # its run; `outcome` tags that of the pipeline
            read = describe_rows(sources, benchmarks, sieve)
            return _clear(output, path, read | {"nothing_new": True, "since": renewal})
        drift = _drift(settings, output, sieve, split) if before else None
        tallies = _write(output, sieve.accepted, split, Writer(path, settings.seed), workers, before)
        _write_seen(output, sieve, split, before)
        probe = _probe(settings, output, sieve.accepted, split, ProbeReader(path, settings.seed), workers)
    statistics = _clear(output, path, describe(sources, benchmarks, sieve, split, tallies))
    _judge(probe, statistics["picks_longer"], settings)
    output.summary = "{distil} distil, {rl} rl, {heldout} held out".format(**statistics["pairs"])
    if renewal:
        _report(renewal, drift or [], output)
        statistics |= {"since": renewal, "drift": [shift.statistics() for shift in drift or []]}
    return statistics | {"probe": probe.statistics() if probe else None, "nothing_new": False}


def _clear(output: Output, accepted: Path, statistics: dict[str, Any]) -> dict[str, Any]:
    """Remove what is no result; return the statistics as they are."""
    accepted.unlink()
    shutil.rmtree(output.workdir / "sources", ignore_errors=True)
    return statistics


def _report(renewal: Mapping[str, Any], drift: Sequence[Shift], output: Output) -> None:
    """Say what is new in the summary and in MLflow."""
    new, replayed = renewal["new"], sum(renewal["replayed"].values())
    output.summary += f"; new {sum(new.values())}, replayed {replayed}, held out before {renewal['frozen']}"
    metrics = {f"new.{part}": float(count) for part, count in new.items()}
    metrics |= {"new.replayed": float(replayed), "new.overlap": float(sum(renewal["new_overlap"].values()))}
    metrics["new.relabelled"] = float(sum(renewal["relabelled"].values()))
    output.tracking.log_metrics(metrics | {f"drift.{shift.name}": shift.distance for shift in drift})
    drifted = [shift.name for shift in drift if shift.drifted]
    if drifted:
        output.summary += f"; drift in {', '.join(drifted)}"  # the whole of it is in the log and in the statistics
    output.tracking.set_tags({"reasrm.since": renewal["uri"], "reasrm.drift": ", ".join(drifted) or "none"})


def _drift(settings: Config, output: Output, sieve: Sieve, split: Split) -> list[Shift]:
    """Compare the new pairs with those before. Raises InvalidInput where a drift is to stop the run."""
    with output.progress.bar("drift", total=1) as bar:
        old, new = sample_pairs(sieve.accepted, split, settings.seed)
        found = compare(old, new, settings.max_drift)
        found.append(relabelling(sieve.num_known, sieve.relabelled.total(), settings.max_drift))
        bar.advance(1)
    check_drift(found, settings)
    return found


def _write_seen(output: Output, sieve: Sieve, split: Split, before: Before | None) -> None:
    """Write what all that was seen is known by, and the prompts trained on, of this run and those before it."""
    chosen = np.concatenate([split.chosen["distil"], split.chosen["rl"]])
    write_seen(output.directory / SEEN_FILE, sieve.seen, before)
    write_trained(output.directory / TRAINED_FILE, sieve.accepted, chosen, before)


def _index(settings: Config, output: Output, quarantine: IO[bytes]) -> tuple[dict[str, dict[str, Any]], Path | None]:
    """Write the index of the benchmarks; return what was read of each, and the file."""
    if not settings.benchmarks:
        return {}, None
    with output.progress.bar("benchmarks", total=1) as bar:
        index, read = index_benchmarks(settings, output.storage, output.workdir / "sources", quarantine)
        path = output.directory / OVERLAP_FILE
        index.save(path)
        bar.advance(1, note=f"{sum(index.questions.values())} questions")
    return read, path


def _read(
    settings: Config, output: Output, sieve: Sieve, examiner: Examiner, workers: Workers, before: Before | None
) -> list[dict[str, Any]]:
    """Bring every row of the sources through the sieve; return what was read of each source."""
    sources: list[dict[str, Any]] = []
    with output.progress.bar("sources", total=len(settings.sources)) as bar:

        def chunks() -> Iterator[tuple[int, list[Row]]]:
            if before is not None:
                for number, source in enumerate(before.sources):
                    written: Iterator[Row] = before.rows(number)
                    while chunk := list(islice(written, CHUNK_ROWS)):
                        yield number, chunk
                    about: dict[str, Any] = {"uri": source.uri, "format": "pairs", "sha256": before.manifest.digest}
                    sources.append(about | {"weight": source.weight, "selected_out": 0})
                    bar.advance(1)
            for number, source in list(enumerate(settings.due))[len(sources) :]:
                reader = read_source(source, output.storage, output.workdir / "sources")
                rows = iter(reader)
                form: str = source.format
                while chunk := list(islice(rows, CHUNK_ROWS)):
                    form = _layout(source, chunk) if form == "auto" else form
                    yield number, chunk
                digest = source_digest(source, output.storage)
                about = {"uri": named(source), "format": form, "sha256": digest, "weight": source.weight}
                sources.append(about | {"selected_out": reader.num_selected_out})
                bar.advance(1)

        for examined in workers.map(examiner.examine, chunks()):
            sieve.take(examined)
            bar.advance(0, note=f"{len(sieve.accepted)} pairs of {sieve.num_rows} rows")
    sieve.check()
    return sources


def _layout(source: SourceSettings, rows: Sequence[Row]) -> str:
    """Return the layout of the first of the rows that has one."""
    for row in rows:
        if isinstance(row, tuple):
            try:
                found = detect({column: value for column, value in row[1].items() if value is not None})
            except (ValueError, AttributeError):
                continue
            logger.info("%s: rows are read as %s", source.uri, found)
            return found
    return "auto"


def _split(settings: Config, output: Output, sieve: Sieve, before: Before | None) -> Split:
    """Drop what is nearly a copy, group the prompts, and choose the pairs of each part."""
    accepted = sieve.accepted
    with output.progress.bar("similar texts", total=2) as bar:
        sieve.drop_near_duplicates()
        bar.advance(1)
        first = sieve.find_clusters()
        bar.advance(1)
    total = sieve.total
    for reason, count in sorted((total.bad + total.dropped).items()):
        logger.info("left out %s rows: %s", count, reason)
    draws, ranks = np.array(accepted.part_draws)[first], np.array(accepted.ranks)
    parts = np.array([PARTS.index(part_of(number, settings)) for number in draws.tolist()], np.intp)
    kept = np.frombuffer(bytes(accepted.dropped), np.uint8) == 0
    if not kept.any():
        told = "; ".join(f"{reason} ({count})" for reason, count in (total.bad + total.dropped).most_common(5))
        raise InvalidInput(f"none of the {total.rows} rows is left: {told}; change the settings or give other data")
    if before is not None:
        renewed = renew(parts, kept, first, sieve, before, settings)
        parts, kept = renewed.parts, renewed.kept
        kept &= np.frombuffer(bytes(accepted.dropped), np.uint8) == 0
    frozen = np.frombuffer(bytes(accepted.origins), np.uint8) == FROZEN
    fallen, chosen = {}, {}
    limits = {"distil": settings.max_distil, "rl": settings.max_rl, "heldout": settings.max_heldout}
    for number, part in enumerate(PARTS):
        pairs = np.flatnonzero(kept & (parts == number))
        if not len(pairs) and before is None and not (part == "distil" and settings.distil_share == 0):
            raise InvalidInput(
                f"no pairs fall into the part {part!r} (distil_share={settings.distil_share:g}, "
                f"heldout_share={settings.heldout_share:g}, seed={settings.seed}); give more prompts or change the "
                f"shares"
            )
        fallen[part] = len(pairs)
        ranked = pairs[np.argsort(-ranks[pairs], kind="stable")]
        old, rest = pairs[frozen[pairs]], ranked[~frozen[ranked]]  # what was held out keeps its place, and is all kept
        limit = limits[part]
        chosen[part] = np.concatenate([old, rest if limit is None else rest[: max(0, limit - len(old))]])
    return Split(chosen, fallen, first)


def _write(
    output: Output, accepted: Accepted, split: Split, writer: Writer, workers: Workers, before: Before | None
) -> dict[Part, Tally]:
    tallies = {part: Tally() for part in PARTS}
    with output.progress.bar("pairs", total=sum(map(len, split.chosen.values()))) as bar:

        def lines(part: Part) -> Iterator[bytes]:
            chosen = split.chosen[part].tolist()
            if part == "heldout" and before is not None:
                data, tally = before.heldout()
                tallies[part].add(tally)
                bar.advance(tally.pairs, note=part)
                yield data
                chosen = chosen[tally.pairs :]
            pairs = ((accepted.offsets[one], _cluster(one, accepted, split)) for one in chosen)
            tasks = ((part, chunk) for chunk in iter(lambda: list(islice(pairs, CHUNK_ROWS)), []))
            for data, tally in workers.map(writer.lines, tasks):
                tallies[part].add(tally)
                bar.advance(tally.pairs, note=part)
                yield data

        for part in PARTS:
            write_lines(output.directory / f"{part}.jsonl", lines(part))
    return tallies


def _cluster(pair: int, accepted: Accepted, split: Split) -> str:
    """Return the name of a pair's cluster: that of its first prompt, or what it was called when that was held out."""
    first = int(split.first_of_cluster[pair])
    if accepted.origins[first] == FROZEN:
        return str(json.loads(accepted.read(first)[1])["cluster"])
    return accepted.prompt_names[accepted.prompts[first]].hex()


def _probe(
    settings: Config, output: Output, accepted: Accepted, split: Split, reader: ProbeReader, workers: Workers
) -> Probe | None:
    chosen = np.concatenate([split.chosen["distil"], split.chosen["rl"]])
    with output.progress.bar("shortcut probe", total=1) as bar:
        offsets = np.array(accepted.offsets, np.int64)[chosen].tolist()
        found = run_probe(offsets, split.first_of_cluster[chosen].tolist(), reader, settings, workers)
        bar.advance(1)
    return found


def _judge(probe: Probe | None, picks_longer: float, settings: Config) -> None:
    """Log the probe's result beside the baseline of length, and stop where it is too good."""
    if probe is None:
        return
    logger.info(
        "probe AUC %.3f (%.3f to %.3f), picking the longer answer %.2f", probe.auc, probe.low, probe.high, picks_longer
    )
    if probe.answers:
        probe.answers.log()
    probe.check(settings.max_probe_auc)
