"""Write the data card from the data, so that its numbers cannot go stale."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]

CARD = """\
# Sample preference pairs and recorded judgments

{num_pairs} short preference pairs and {num_traces} recorded teacher judgments (traces) of them, for the demo and the
tests. They are small enough for a model of 135 million parameters to learn from on two CPU cores.

| File | One line is | Lines |
|---|---|---|
| `pairs.jsonl.gz` | a `PreferencePair`: prompt (text, or messages), two answers, label | {num_pairs} |
| `traces.jsonl.gz` | a `Trace` in the `rubric` grammar; `<id>:ba` has the answers exchanged | {num_traces} |
{weeks}

Those in `weekly` are the pairs of the first file again, as two weekly deliveries for the recipe `weekly`: a quarter of
each kind of task comes in the second week, and with them all that is written by hand.

## How it was made

- {num_checked} pairs are made by programs, {num_kinds} kinds of task. Each kind has a check that reads the answer's
  text and works the task out from `meta.params`, mostly in a second way; the build fails unless the check accepts the
  chosen answer and refuses the rejected one. Wrong answers are likely slips: a lost carry, one off, a wrong unit, a
  rule almost kept. Right and wrong answers are phrased from the same templates.
- {num_written} pairs (`chat`, `safety`) are written by hand for this project, with the criteria and reasons that their
  traces use. In {num_injected} of them the worse answer gives the judge orders or fakes a verdict.
- {num_turns} pairs have an exchange before the last turn.
- Nothing is copied from a dataset or written by a model behind an API. Draws come from SHA-256 of the pair's name, so
  a rebuild gives the same text anywhere.

## Balance

A length or position rule learns nothing here. "Longer" is the share of pairs whose chosen answer has more characters.

| Category | Pairs | Longer | Label A | Sound traces | Faulty traces |
|---|---|---|---|---|---|
{balance}

## Faulty traces

{num_faulty} of {num_traces} traces ({faulty_share}) are bad on purpose, so that trace filtering has work to do. The key
decides which ones and how (`samples.traces.fault_of`); the file does not tell.

| Fault | Traces | What it looks like |
|---|---|---|
{faults}

## Size

Tokens are estimated as characters // 4, also in the traces' `prompt_tokens` (conversation and both answers, without
the judge's instructions) and `completion_tokens`. A real tokenizer counts more for a trace: tags split into pieces.

| | Median | Maximum |
|---|---|---|
| prompt and both answers | {prompt_median} | {prompt_max} |
| trace | {trace_median} | {trace_max} |

## Limits

Synthetic, English, narrow and easy for a large model. Good for showing that the pipeline runs and that a small judge
learns; a score on it says nothing about a judge's quality on real conversations. The medical and safety answers are
examples of tone, not advice. Do not report it as a benchmark.

## Rebuild

From the repository's root, after changing a generator, `chat.toml` or `safety.toml` (this card is written too):

    python -m samples.build            # rewrites the files
    python -m samples.build --check    # exits 1 if one of them is not up to date

## More of the same

    python -m samples.build --pairs 5000 --output .reasrm/samples-5000

writes so many pairs, these among them, and their judgments, drawn, checked and balanced in the same way. No two have
the same prompt, so there is an end: the builder knows about 15,000. The recipe `learn-smollm2` trains on 5,000.

Licence: Apache-2.0, the project's.
"""

LOOKS = {
    "wrong verdict": "whole and well formed, but it makes the rejected answer's mistake",
    "two verdicts": "a second, opposite answer behind the first",
    "cut off": "ends in the middle, `finish_reason` is `length`",
    "wrong tags": "`<evaluation>`, no `</eval>`, a lower-case letter, or a verdict without its tags",
    "no reasoning": "the verdict alone",
}


def data_card(
    pairs: Sequence[Row], traces: Sequence[Row], weeks: Mapping[str, int], fault_of: Callable[[str], str]
) -> str:
    """Return the text of README.md; `weeks` has the files of the weekly deliveries and how many pairs each has."""
    faults = Counter(fault for trace in traces if (fault := fault_of(trace["key"])))
    by_hand = [pair for pair in pairs if not pair["meta"]]
    prompts = [trace["prompt_tokens"] for trace in traces]
    lengths = [trace["completion_tokens"] for trace in traces]
    return CARD.format(
        weeks=_table([f"`{name}`", "a `PreferencePair`, as above", count] for name, count in weeks.items()),
        num_pairs=len(pairs),
        num_traces=len(traces),
        num_checked=len(pairs) - len(by_hand),
        num_kinds=len({pair["category"] for pair in pairs if pair["meta"]}),
        num_written=len(by_hand),
        num_injected=sum("[[" in pair["response_a"] + pair["response_b"] for pair in by_hand),
        num_turns=sum(not isinstance(pair["prompt"], str) for pair in pairs),
        balance=_balance(pairs, traces, fault_of),
        num_faulty=faults.total(),
        faulty_share=f"{faults.total() / len(traces):.1%}",
        faults=_table([name, faults[name], looks] for name, looks in LOOKS.items()),
        prompt_median=f"{median(prompts):.0f}",
        prompt_max=max(prompts),
        trace_median=f"{median(lengths):.0f}",
        trace_max=max(lengths),
    )


def chosen_is_longer(pair: Row) -> bool:
    """Say whether the chosen answer has more characters than the rejected one."""
    difference = len(pair["response_a"]) - len(pair["response_b"])
    return difference > 0 if pair["label"] == "A" else difference < 0


def _balance(pairs: Sequence[Row], traces: Sequence[Row], fault_of: Callable[[str], str]) -> str:
    faulty = Counter(trace["pair_id"].rsplit("-", 1)[0] for trace in traces if fault_of(trace["key"]))
    names = list(dict.fromkeys(pair["category"] for pair in pairs))
    groups = [(name, [pair for pair in pairs if pair["category"] == name]) for name in names]
    rows = []
    for name, group in [*groups, ("**all**", list(pairs))]:
        num_faulty = faulty[name] if name in names else faulty.total()
        longer = sum(map(chosen_is_longer, group)) / len(group)
        label_a = sum(pair["label"] == "A" for pair in group) / len(group)
        rows.append([name, len(group), f"{longer:.0%}", f"{label_a:.0%}", 2 * len(group) - num_faulty, num_faulty])
    return _table(rows)


def _table(rows: Iterable[Sequence[str | int]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
