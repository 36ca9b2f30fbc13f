"""`reasrm judge`: the verdicts of a judge on a file of pairs."""

import hashlib
import json
import logging
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.judge_options import MODELS, found_judge, judge_options

if TYPE_CHECKING:
    from components.adapters.judging.asking import Asking, Comparison, Said
    from components.adapters.judging.opening import Opener
    from components.adapters.judging.pairs_file import Asked, Pairs

NUM_BAD_SHOWN = 3


@click.command(
    epilog="\b\nExamples:\n"
    "  reasrm judge --model reasrm-demo@champion --pairs pairs.jsonl --output verdicts.jsonl\n"
    "  reasrm judge --model ./model --engine vllm --votes 4 --temperature 1 --pairs pairs.parquet --output v.jsonl\n"
    "  reasrm judge --model judge --base-url http://vllm:8000/v1 --pairs pairs.jsonl > verdicts.jsonl\n\n"
    "\b\nA row of the pairs has prompt (a question, or messages with role and content), response_a and response_b;\n"
    "id names it in the output, and with label (A or B) the summary has an accuracy.\n\n" + MODELS
)
@click.option(
    "--pairs",
    "path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Pairs: .jsonl, .jsonl.gz, .json or .parquet.",
)
@click.option(
    "--output", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Where verdicts go. [the screen]"
)
@click.option("--json", "as_json", is_flag=True, help="The summary as one line of JSON.")
@judge_options
def judge(path: Path, output: Path | None, as_json: bool, **options: Any) -> None:
    """Judge pairs: each in both orders, as many times as --votes says, with the judge's written reasoning.

    One line of JSON a pair: verdict (A, B, or null), confidence (the winner's share of all votes), consistent (whether
    both orders agree), and all judgments. With --output a run that was stopped goes on where it was: pairs whose ids
    are in the file are not judged again. The summary goes to standard error.
    """
    from components.adapters.judging.pairs_file import Summary, held, load_judged, read_pairs

    pairs = read_pairs(path)
    opener, asking, name, digest = found_judge(options)
    opener = _with_precision(opener)
    key = _key(opener, asking, digest)
    with held(output) if output else nullcontext():
        rows = load_judged(output, pairs.asked, key) if output else []
        done = {row["id"] for row in rows}
        left = [one for one in pairs.asked if one.pair.id not in done]
        _tell_bad(pairs, output)
        began = time.perf_counter()
        if left:
            rows += _judge(left, len(pairs.asked), opener, asking, name, key, output)
    facts = Summary(rows, pairs.labels).facts() | {"bad_rows": len(pairs.bad), "repeated_rows": pairs.num_repeated}
    facts |= {"judge": name, "judged_now": len(left), "seconds": round(time.perf_counter() - began, 1)}
    click.echo(json.dumps(facts) if as_json else _words(facts), err=True)


def _with_precision(opener: "Opener") -> "Opener":
    """Decide once which precision `auto` is here: verdicts of a file are of one."""
    from components.adapters.models import pick_precision

    if opener.settings.kind == "endpoint":
        return opener
    settings = opener.settings.model_copy(update={"precision": pick_precision(opener.settings.precision)})
    return replace(opener, settings=settings)


def _key(opener: "Opener", asking: "Asking", digest: str) -> str:
    """Return what tells verdicts of different judges apart: the model, its precision here, and how it is asked."""
    from components.adapters.engines import digest_of_messages
    from components.core import prompts
    from components.core.schema import PreferencePair

    settings = opener.settings
    asked = PreferencePair.model_validate(
        {"id": "x", "prompt": "q", "response_a": "a", "response_b": "b", "label": "A"}
    )
    decisive: dict[str, Any] = {"model": digest or str(opener.model), "asking": asking.model_dump(mode="json")}
    decisive["prompt"] = digest_of_messages(prompts.render(asked, asking.grammar).messages)
    if settings.kind == "endpoint":
        decisive |= settings.model_dump(mode="json", include={"base_url", "extra_body", "send_temperature"})
    else:
        decisive |= settings.model_dump(mode="json", include={"kind", "precision", "max_model_tokens"})
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _judge(
    left: "list[Asked]",
    num_pairs: int,
    opener: "Opener",
    asking: "Asking",
    name: str,
    key: str,
    output: Path | None,
) -> list[dict[str, Any]]:
    """Judge what is left, write each verdict as soon as it is there, and return the rows."""
    from components.adapters.judging.bulk import judge_all
    from components.adapters.judging.pairs_file import brief, line_of
    from components.adapters.progress import Progress

    # Where nobody watches a bar, a line now and then says that it goes on.
    logging.getLogger("components.adapters.progress").setLevel(logging.INFO)

    rows: list[dict[str, Any]] = []
    progress, engine = Progress("judge"), opener()
    num_tokens, began = 0, time.perf_counter()
    file = output.open("ab") if output else sys.stdout.buffer

    def on_said(said: "Said") -> None:
        nonlocal num_tokens
        num_tokens += said.num_tokens

    def on_pair(place: int, found: "Comparison") -> None:
        line = line_of(left[place], found, name, key)
        file.write(line)
        file.flush()
        rows.append(brief(json.loads(line)))
        progress.advance(1, f"{num_tokens / (time.perf_counter() - began):.0f} tokens/s")

    try:
        with progress.bar(name, total=num_pairs, done=num_pairs - len(left)):
            judge_all(engine, [one.pair for one in left], asking, on_pair, on_said)
    finally:
        engine.close()
        if output:
            file.close()
    return rows


def _tell_bad(pairs: "Pairs", output: Path | None) -> None:
    """Say which rows are no pairs, and keep them beside the output."""
    if not pairs.bad:
        return
    kept = ""
    if output is not None:
        from components.core.records import write_jsonl

        place = output.with_name(output.name + ".bad.jsonl")
        write_jsonl(place, (one.as_dict() for one in pairs.bad))
        kept = f"; all are in {place}"
    shown = "".join(f"\n  {one.place}: {one.reason}" for one in pairs.bad[:NUM_BAD_SHOWN])
    click.secho(f"{len(pairs.bad)} rows are no pairs and are left out{kept}{shown}", fg="yellow", err=True)


def _words(facts: dict[str, Any]) -> str:
    verdicts, causes = facts["verdicts"], facts["causes"]
    lines = [
        f"{facts['pairs']} pairs ({facts['judged_now']} judged now) by {facts['judge']}: A {verdicts['A']}, "
        f"B {verdicts['B']}, no verdict {verdicts['none']}"
    ]
    if facts["repeated_rows"]:
        lines.append(f"{facts['repeated_rows']} rows are an earlier pair again and were not judged twice")
    if "accuracy" in facts:
        lines.append(f"accuracy {facts['accuracy']:.3f} on {facts['labelled']} with a label (no verdict is wrong)")
    if "consistency" in facts:
        lines.append(f"both orders agree on {facts['consistency']:.3f} of the pairs that have a verdict in both")
    if "mean_confidence" in facts:
        lines.append(f"mean confidence of verdicts {facts['mean_confidence']:.3f}")
    lost = ", ".join(f"{name} {count}" for name, count in sorted(causes.items()) if name != "ok")
    lines.append(
        f"{facts['judgments']} judgments, {facts['prompt_tokens']} tokens read, {facts['completion_tokens']} written"
        + (f"; without a verdict: {lost}" if lost else "")
    )
    return "\n".join(lines)
