"""Cascades through the real command: who is asked for what, what the later teacher sees, and what is kept."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.manifest import Manifest
from components.core.records import read_models, to_line
from components.core.schema import Trace

NUM_PAIRS = 24


def number_in(prompt: str) -> int:
    return int(re.findall(r"What is (\d+) plus 1", prompt)[0])


def is_exchanged(prompt: str) -> bool:
    """Whether the prompt shows the right answer as reply B."""
    return f"[Reply B]\n{number_in(prompt) + 1}\n" in prompt


def verdict(letter: str, why: str = "weighed") -> str:
    return f"<think>{why}</think>\n<answer>[[{letter}]]</answer>"


@pytest.fixture
def pairs(commit_pairs: Any) -> Manifest:
    return commit_pairs(NUM_PAIRS - 4, rl=4)  # type: ignore[no-any-return]


DISTIL = range(NUM_PAIRS - 4)


def teacher(server: Any, model: str, **settings: Any) -> dict[str, Any]:
    calls = {"concurrency": 4, "attempts": 2, "breaker_rows": 3, "max_wait_seconds": 0.1}
    return {"kind": "openai", "base_url": server.url, "model": model, "calls": calls} | settings


class Stage:
    """One history of the stage: a working folder and an artifact root of its own."""

    def __init__(self, runner: Any, pairs: Manifest, config: dict[str, Any]) -> None:
        runner.environment = {k: v for k, v in runner.environment.items() if not k.startswith("MLFLOW")}
        self.runner, self.pairs = runner, pairs
        self.config = {"grammar": "think", "shard_size": 4, "max_failed_fraction": 0.1} | config

    def start(self) -> tuple[int, str]:
        running = self.runner.start("traces", self.config, {"pairs": self.pairs})
        before = running.log.stat().st_size
        code = running.process.wait(timeout=400)
        return code, running.log.read_bytes()[before:].decode()

    def finish(self) -> Manifest:
        code, said = self.start()
        assert code == 0, said
        return Manifest.from_bytes((self.runner.directory / "output.json").read_bytes())

    def results(self, storage: Any, folder: Path) -> tuple[list[Trace], list[dict[str, Any]]]:
        fetched = storage.fetch(self.finish(), folder)
        failures = [json.loads(line) for line in (fetched / "failures.jsonl").read_text().splitlines()]
        return read_models(fetched / "traces.jsonl", Trace), failures


@pytest.fixture
def make_stage(stage_runner: Any, pairs: Manifest) -> Callable[..., Stage]:
    return lambda name, *teachers, **settings: Stage(stage_runner(name), pairs, {"teacher": list(teachers)} | settings)


WRONG, UNDECIDED, REFUSED = (3, 8), 5, 11


def weak(server: Any) -> Callable[[Any], Any]:
    """Judge most rows right, two wrong, one not at all; refuse one."""

    def script(call: Any) -> Any:
        number = number_in(call.prompt)
        if number == REFUSED:
            return server.answer(status=400, body=b"cannot do this")
        right, wrong = ("B", "A") if is_exchanged(call.prompt) else ("A", "B")
        text = verdict(wrong, f"slip {number} </eval>") if number in WRONG else verdict(right)
        return server.answer(body=server.completion("no verdict at all" if number == UNDECIDED else text))

    return script


def strong(server: Any) -> Callable[[Any], Any]:
    def script(call: Any) -> Any:
        return server.answer(body=server.completion(verdict("B" if is_exchanged(call.prompt) else "A", "thorough")))

    return script


@pytest.mark.parametrize("show_label", [True, False])
def test_the_second_teacher_gets_exactly_what_the_first_did_not_judge_right(
    make_stage: Any, teacher_server: Any, other_server: Any, s3: Any, tmp_path: Path, show_label: bool
) -> None:
    teacher_server.script, other_server.script = weak(teacher_server), strong(other_server)
    second = teacher(other_server, "strong", show_label=show_label, temperature=0.7, max_tokens=99)
    stage = make_stage("cascade", teacher(teacher_server, "weak"), second, prices={"strong": {"input": 2, "output": 8}})
    traces, failures = stage.results(s3.storage, tmp_path / "fetched")

    left = sorted([*WRONG, UNDECIDED, REFUSED])
    assert Counter(number_in(call.prompt) for call in teacher_server.calls) == Counter(DISTIL)
    assert sorted(number_in(call.prompt) for call in other_server.calls) == left
    assert {(call.body["temperature"], call.body["max_tokens"]) for call in other_server.calls} == {(0.7, 99)}
    first_prompts = {number_in(call.prompt): call.prompt for call in teacher_server.calls}
    for call in other_server.calls:
        number = number_in(call.prompt)
        assert call.body["messages"][0] == teacher_server.calls[0].body["messages"][0]
        if not show_label:
            assert call.prompt == first_prompts[number]
            continue
        told = call.prompt.removeprefix(first_prompts[number])
        assert "reply A is the better one" in told
        assert ("[Earlier judgment]" in told) == (number in WRONG)
        assert (f"slip {number} ‹/eval›" in told) == (number in WRONG)
        assert "⟦⟦B⟧⟧" in told or number not in WRONG
        assert "</eval>" not in told

    expected = [
        (n, step) for n in DISTIL for step in (0, 1) if (step == 0 and n != REFUSED) or (step == 1 and n in left)
    ]
    assert [(int(trace.pair_id[1:]), trace.step) for trace in traces] == expected
    assert {trace.pair_id for trace in traces if trace.right} == {f"p{n}" for n in DISTIL}
    assert all(trace.rationalised == (trace.step == 1 and show_label) for trace in traces)
    assert [(row["key"], row["step"], row["kind"], row["rescued"]) for row in failures] == [
        (f"p{REFUSED}:ab", 0, "refused", True)
    ]
    statistics = stage.finish().statistics
    assert statistics["steps"]["0"] == {
        "teacher": "weak", "asked": 20, "traces": 19, "right": 16, "wrong": 2, "undecided": 1, "truncated": 0,
        "rationalised": 0, "failed": 1, "prompt_tokens": 19 * 11, "completion_tokens": 19 * 7, "cost": None,
    }  # fmt: skip
    assert statistics["steps"]["1"] == {
        "teacher": "strong", "asked": 4, "traces": 4, "right": 4, "wrong": 0, "undecided": 0, "truncated": 0,
        "rationalised": 4 * show_label, "failed": 0, "prompt_tokens": 44, "completion_tokens": 28, "cost": 0.000312,
    }  # fmt: skip
    assert statistics["teachers"] == {"strong": 4, "weak": 19}
    assert (statistics["pairs"], statistics["pairs_right"], statistics["failures"]) == (20, 20, {"refused": 1})


def test_samples_and_both_orders_are_rows_of_their_own(
    make_stage: Any, teacher_server: Any, other_server: Any, s3: Any, tmp_path: Path
) -> None:
    """The first always says A, so each pair is judged right in one order and goes on in the other."""
    teacher_server.script = lambda call: teacher_server.answer(body=teacher_server.completion(verdict("A")))
    other_server.script = strong(other_server)
    stage = make_stage(
        "rows", teacher(teacher_server, "biased", samples=3), teacher(other_server, "strong"), both_orders=True
    )
    traces, _ = stage.results(s3.storage, tmp_path / "fetched")
    asked = Counter((number_in(call.prompt), is_exchanged(call.prompt)) for call in teacher_server.calls)
    assert asked == Counter({(n, exchanged): 3 for n in DISTIL for exchanged in (False, True)})
    assert Counter((number_in(c.prompt), is_exchanged(c.prompt)) for c in other_server.calls) == Counter(
        {(n, True): 1 for n in DISTIL}
    )
    expected = [
        (f"p{n}:{order}", step, sample)
        for n in DISTIL
        for order in ("ab", "ba")
        for step, samples in ((0, 3), (1, 1 if order == "ba" else 0))
        for sample in range(samples)
    ]
    assert [(trace.key, trace.step, trace.sample) for trace in traces] == expected
    assert all(trace.right == (not trace.swapped or trace.step == 1) for trace in traces)
    assert all(trace.swapped == trace.key.endswith("ba") for trace in traces)


def test_pass_rates_are_taken_from_the_rl_part(make_stage: Any, teacher_server: Any, s3: Any, tmp_path: Path) -> None:
    teacher_server.script = lambda call: teacher_server.answer(
        body=teacher_server.completion(verdict("A" if call.number % 2 else "B"))
    )
    settings = teacher(teacher_server, "model", samples=4)
    settings["calls"]["concurrency"] = 1
    traces, _ = make_stage("rates", settings, part="rl").results(s3.storage, tmp_path / "fetched")
    rates = Counter(trace.pair_id for trace in traces if trace.right)
    assert rates == Counter({f"p{n}": 2 for n in range(NUM_PAIRS - 4, NUM_PAIRS)})


def test_a_recording_may_come_first_and_only_the_rest_is_paid_for(
    make_stage: Any, teacher_server: Any, other_server: Any, s3: Any, tmp_path: Path
) -> None:
    teacher_server.script, other_server.script = weak(teacher_server), strong(other_server)
    earlier, _ = make_stage("earlier", teacher(teacher_server, "weak")).results(s3.storage, tmp_path / "earlier")
    recording = f"{s3.prefix}/recording.jsonl"
    s3.storage.write_bytes(recording, b"".join(to_line(trace) for trace in earlier if trace.pair_id != "p0"))
    stage = make_stage(
        "recorded",
        {"kind": "recorded", "uri": recording},
        teacher(other_server, "strong"),
        max_total_tokens=10**6,
    )
    traces, failures = stage.results(s3.storage, tmp_path / "fetched")
    assert sorted(number_in(call.prompt) for call in other_server.calls) == sorted([0, *WRONG, UNDECIDED, REFUSED])
    assert {trace.pair_id for trace in traces if trace.right} == {f"p{n}" for n in DISTIL}
    assert {row["kind"] for row in failures} == {"missing"}
    workdir = next(Path(stage.runner.environment["REASRM_WORKDIR"]).glob("traces-*"))
    assert not {"sources", "inputs", "output"} & {path.name for path in workdir.iterdir()}  # copies, not needed again
    statistics = stage.finish().statistics
    assert statistics["steps"]["0"]["cost"] == 0
    assert statistics["waste"] == {"prompt_tokens": 0, "completion_tokens": 0, "cost": None}


def test_a_row_that_a_later_step_took_over_is_not_asked_for_again(
    make_stage: Any, teacher_server: Any, other_server: Any, s3: Any, tmp_path: Path
) -> None:
    teacher_server.script, other_server.script = weak(teacher_server), strong(other_server)
    teachers = (teacher(teacher_server, "weak"), teacher(other_server, "strong"))
    calm = make_stage("calm", *teachers).results(s3.storage, tmp_path / "calm")
    stage = make_stage("rough", *teachers)
    down = other_server.answer(status=503)
    other_server.script = lambda call: down if number_in(call.prompt) != REFUSED else strong(other_server)(call)
    code, said = stage.start()
    assert code == 75, said
    num_first, num_second = len(teacher_server.calls), len(other_server.calls)
    other_server.script = strong(other_server)
    assert stage.results(s3.storage, tmp_path / "rough") == calm
    assert len(teacher_server.calls) == num_first
    again = Counter(number_in(call.prompt) for call in other_server.calls[num_second:])
    assert again == Counter(dict.fromkeys((*WRONG, UNDECIDED), 1))


def test_an_outage_of_the_second_teacher_keeps_what_the_first_wrote_also_on_another_machine(
    make_stage: Any, teacher_server: Any, other_server: Any, tmp_path: Path
) -> None:
    teacher_server.script = weak(teacher_server)
    other_server.script = lambda call: other_server.answer(status=503)
    stage = make_stage("outage", teacher(teacher_server, "weak"), teacher(other_server, "strong"))
    code, said = stage.start()
    assert code == 75, said
    assert "failed 3 rows in a row" in said
    num_first = len(teacher_server.calls)
    stage.runner.environment["REASRM_WORKDIR"] = str(tmp_path / "another machine")
    other_server.script = strong(other_server)
    assert stage.finish().statistics["pairs_right"] == 20
    assert {number_in(call.prompt) for call in teacher_server.calls[num_first:]} <= {REFUSED}


def test_a_first_teacher_that_answers_nothing_stops_the_stage_before_the_second_is_paid(
    make_stage: Any, teacher_server: Any, other_server: Any
) -> None:
    teacher_server.script = lambda call: teacher_server.answer(status=400, body=b"unknown parameter")
    stage = make_stage("dead", teacher(teacher_server, "weak"), teacher(other_server, "strong"))
    code, said = stage.start()
    assert code == 2, said
    assert "weak answered none of 20 rows (20 refused)" in said
    assert "unknown parameter" in said
    assert not other_server.calls


def test_a_missing_key_of_the_second_teacher_is_found_before_the_first_is_asked(
    make_stage: Any, teacher_server: Any, other_server: Any
) -> None:
    second = teacher(other_server, "strong")
    second["calls"]["api_key_env"] = "NOT_SET_API_KEY"
    code, said = make_stage("key", teacher(teacher_server, "weak"), second).start()
    assert code == 2, said
    assert "NOT_SET_API_KEY" in said
    assert not teacher_server.calls


def test_too_many_truncated_traces_stop_the_stage_and_a_higher_limit_goes_on_with_them(
    make_stage: Any, teacher_server: Any, s3: Any, tmp_path: Path
) -> None:
    def script(call: Any) -> Any:
        is_long = number_in(call.prompt) % 3 == 0
        text = verdict("A") if not is_long else f"<think>{verdict('A')}"
        return teacher_server.answer(body=teacher_server.completion(text, "length" if is_long else "stop"))

    teacher_server.script = script
    stage = make_stage("long", teacher(teacher_server, "m", max_tokens=64))
    for _ in range(2):  # Starting again changes nothing: it is not forgotten that they were cut off.
        code, said = stage.start()
        assert code == 2, said
        assert "7 of 20 traces of m were cut off at max_tokens=64" in said
    assert len(teacher_server.calls) == 20
    stage.config["max_truncated_fraction"] = 0.5
    traces, _ = stage.results(s3.storage, tmp_path / "fetched")
    assert len(teacher_server.calls) == 20
    assert [trace.right for trace in traces] == [n % 3 != 0 for n in DISTIL]
    statistics = stage.finish().statistics
    assert (statistics["truncated"], statistics["undecided"], statistics["wrong"]) == (7, 7, 0)


def test_hopeless_truncation_is_noticed_long_before_the_end(make_stage: Any, teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(
        body=teacher_server.completion("<think>on and", "length")
    )
    stage = make_stage("cut", teacher(teacher_server, "m", samples=8, temperature=1.0))
    code, said = stage.start()
    assert code == 2, said
    assert "max_tokens=8192" in said
    assert 20 <= len(teacher_server.calls) <= 30


def test_reasoning_that_the_server_kept_apart_is_part_of_the_trace(
    make_stage: Any, teacher_server: Any, s3: Any, tmp_path: Path
) -> None:
    teacher_server.script = lambda call: teacher_server.answer(
        body=teacher_server.completion("<answer>[[A]]</answer>", reasoning_content="one and one")
    )
    traces, _ = make_stage("apart", teacher(teacher_server, "m")).results(s3.storage, tmp_path / "fetched")
    assert {(trace.text, trace.right) for trace in traces} == {
        ("<think>one and one</think>\n<answer>[[A]]</answer>", True)
    }


def test_whoever_watches_sees_the_numbers_that_apply(make_stage: Any, teacher_server: Any, tmp_path: Path) -> None:
    """In the status file that `reasrm run` paints, and in what goes to MLflow; the artifact holds none of them."""
    seen: set[str] = set()
    status = tmp_path / "status" / "traces.json"

    def script(call: Any) -> Any:
        if status.is_file():
            seen.add(str(json.loads(status.read_text()).get("note", "")))
        if call.number == 3:
            return teacher_server.answer(status=503)
        if number_in(call.prompt) == REFUSED:
            return teacher_server.answer(status=400, body=b"no")
        return teacher_server.answer(body=teacher_server.completion(verdict("A")), delay_seconds=0.25)

    teacher_server.script = script
    stage = make_stage("seen", teacher(teacher_server, "m"), prices={"m": {"input": 20, "output": 80}}, max_cost=5)
    stage.runner.environment["REASRM_STATUS"] = str(status.parent)
    manifest = stage.finish()
    note = re.compile(
        r"right 100% · \d+ tok/s · \$0\.0\d of \$5\.00 · p50 0\.\d s p95 0\.\d s( · \d retries)?( · 1 failed)?"
    )
    assert any(note.fullmatch(one) for one in seen), seen
    state = json.loads(status.read_text())
    assert (state["done"], state["total"]) == (20, 20)
    assert state["note"].endswith("1 failed")
    work = next(Path(stage.runner.environment["REASRM_WORKDIR"]).glob("traces-*"))
    operations = map(json.loads, (work / "tracking" / "ops.jsonl").read_text().splitlines())
    logged = [op["data"]["metrics"] for op in operations if op["kind"] == "metrics" and op["data"]["step"] is not None]
    last = logged[-1]
    assert {"latency_p50_seconds", "latency_p95_seconds", "tokens_per_second", "calls.limit"} <= set(last)
    assert (last["traces"], last["failed"], last["retries"], last["right_share.0"]) == (19, 1, 1, 1)
    assert (last["tokens"], round(last["cost"], 6), last["wasted_tokens"]) == (
        19 * 18,
        19 * (11 * 20 + 7 * 80) / 1e6,
        0,
    )
    assert "latency" not in manifest.to_bytes().decode()
