"""The budget is never crossed: counted at the server that hands the tokens out."""

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.adapters.teachers import Endpoint, Failure, Outcome, OverBudget, Reply, Request, Usage
from components.core.manifest import Manifest
from components.core.schema import Message
from components.core.teachers import CallLimits, EndpointTeacher, Price
from components.traces.budget import Account, Budget

NUM_PAIRS = 30
MAX_TOKENS = 200
PRICE = Price(input=3, output=15)


def completion(server: Any, text: str, read: int, written: int) -> Any:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": read, "completion_tokens": written}
    return server.answer(body=json.dumps({"choices": [choice], "usage": usage}).encode())


@dataclass
class Bills:
    """What a server has handed out."""

    read: int = 0
    written: int = 0

    @property
    def tokens(self) -> int:
        return self.read + self.written

    @property
    def cost(self) -> float:
        return (self.read * PRICE.input + self.written * PRICE.output) / 1e6

    def add(self, read: int, written: int) -> tuple[int, int]:
        self.read, self.written = self.read + read, self.written + written
        return read, written


@dataclass
class Kept:
    """What the account wanted on disk, as the ledger keeps it."""

    rows: dict[str, Usage] = field(default_factory=dict)

    def __call__(self, id: str, name: str, usage: Usage) -> None:
        self.rows[id] = usage

    @property
    def tokens(self) -> int:
        return sum(usage.prompt_tokens + usage.completion_tokens for usage in self.rows.values())


sizes = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=300),
        st.floats(0, 1),
        st.integers(0, MAX_TOKENS),
        st.sampled_from(["good", "good", "good", "empty", "500", "400", "no usage"]),
    ),
    min_size=1,
    max_size=14,
)


@given(sizes, st.integers(1, 8), st.none() | st.integers(1, 6000), st.none() | st.floats(0.0001, 0.03))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_draw_of_sizes_and_faults_takes_the_server_over_the_cap(
    teacher_server: Any,
    rows: list[tuple[str, float, int, str]],
    concurrency: int,
    max_tokens: int | None,
    max_cost: float | None,
) -> None:
    bills, kept = Bills(), Kept()
    budget = Budget(max_tokens, max_cost)
    account = budget.account(kept, PRICE)

    def script(call: Any) -> Any:
        _, share, written, kind = rows[int(call.prompt.partition(" ")[0])]
        if kind in ("500", "400"):
            return teacher_server.answer(status=int(kind), body=b"no")
        with teacher_server.lock:
            read, wrote = bills.add(int(share * len(call.prompt.encode())), written)
        if kind == "no usage":
            choice = {"message": {"content": "fine"}, "finish_reason": "stop"}
            return teacher_server.answer(body=json.dumps({"choices": [choice]}).encode())
        return completion(teacher_server, "" if kind == "empty" else "fine", read, wrote)

    teacher_server.script = script
    outcomes: list[Outcome] = []

    def keep(outcome: Outcome) -> None:
        outcomes.append(outcome)
        good = isinstance(outcome, Reply)
        account.prove(outcome.key, Usage(outcome.prompt_tokens, outcome.completion_tokens) if good else Usage())

    requests = [
        Request(str(n), (Message(role="user", content=f"{n} {text}"),), MAX_TOKENS) for n, (text, *_) in enumerate(rows)
    ]
    limits = CallLimits(concurrency=concurrency, attempts=2, max_wait_seconds=0.001, breaker_rows=100)
    endpoint = Endpoint(EndpointTeacher(base_url=teacher_server.url, model="m"), limits, account)
    stopped = False
    try:
        asyncio.run(endpoint.ask(requests, keep))
    except OverBudget:
        stopped = True
    account.close()

    assert max_tokens is None or bills.tokens <= max_tokens
    assert max_cost is None or bills.cost <= max_cost * (1 + 1e-9)
    assert stopped == (len(outcomes) < len(rows))
    assert not account.reserved
    assert not account.unproven
    counted = account.spent.prompt_tokens + account.spent.completion_tokens
    assert bills.tokens <= counted
    assert max_tokens is None or counted <= max_tokens
    explained = sum(one.prompt_tokens + one.completion_tokens for one in outcomes if isinstance(one, Reply))
    assert counted == explained + kept.tokens
    if stopped:  # Only because the next call could have crossed it.
        done = {outcome.key for outcome in outcomes}
        left = [account.most(request) for request in requests if request.key not in done]
        assert not all(budget.fits(most.prompt_tokens + most.completion_tokens, account.cost_of(most)) for most in left)
    assert stopped or not any(isinstance(one, Failure) and one.kind == "missing" for one in outcomes)


def request(name: str = "row") -> Request:
    return Request(name, (Message(role="user", content="x" * 100),), max_tokens=50)


MOST = 100 + 32 + 64 + 50


def test_a_call_waits_until_another_gives_back_what_it_did_not_use() -> None:
    async def scene() -> list[str]:
        seen: list[str] = []
        account = Budget(max_tokens=MOST + 20).account(Kept())

        async def call(name: str) -> None:
            await account.admit(request(name))
            seen.append(f"{name} begins")

        await call("one")
        other = asyncio.create_task(call("two"))
        await asyncio.sleep(0.01)
        assert seen == ["one begins"]
        with pytest.raises(OverBudget, match="three can take 246 tokens"):
            await account.admit(request("three"), wait=False)
        account.settle(request("one"), Usage(10, 10))
        await other
        account.settle(request("two"), None)
        with pytest.raises(OverBudget):
            await account.admit(request("four"))
        assert account.spent == Usage(10 + MOST - 50, 10 + 50)
        return seen

    assert asyncio.run(scene()) == ["one begins", "two begins"]


def test_what_is_set_aside_is_on_disk_before_the_call_and_taken_back_after_it() -> None:
    async def scene() -> None:
        kept = Kept()
        account = Budget(max_tokens=1000).account(kept)
        await account.admit(request())
        assert list(kept.rows.values()) == [Usage(MOST - 50, 50)]
        account.settle(request(), Usage(20, 5))
        assert list(kept.rows.values()) == [Usage(20, 5)]
        await account.admit(request())
        assert list(kept.rows.values()) == [Usage(20 + MOST - 50, 55)]
        account.settle(request(), Usage(20, 6))
        account.prove("row", Usage(20, 6))
        assert list(kept.rows.values()) == [Usage(20, 5)]
        assert account.wasted == Usage(20, 5)

    asyncio.run(scene())


def test_a_server_that_counts_more_than_bytes_raises_the_estimate() -> None:
    async def scene(account: Account) -> None:
        await account.admit(request())
        account.settle(request(), Usage(2 * (MOST - 50), 100))
        assert account.most(request()) == Usage(-(-2.5 * (MOST - 50) // 1), 125)

    asyncio.run(scene(Budget().account(Kept())))


@pytest.fixture
def pairs(commit_pairs: Any) -> Manifest:
    return commit_pairs(NUM_PAIRS)  # type: ignore[no-any-return]


@pytest.fixture
def bills(teacher_server: Any) -> Bills:
    """Make the server count as real ones do, answer some rows with nonsense first, and say what it handed out."""
    handed, met = Bills(), Counter[str]()

    def script(call: Any) -> Any:
        with teacher_server.lock:
            met[call.prompt] += 1
            read, written = handed.add(len(call.prompt) // 3, 20 + len(teacher_server.calls) % 100)
        is_nonsense = row_of(call.prompt) % 7 == 3 and met[call.prompt] == 1
        time.sleep(0.02)
        return completion(
            teacher_server, "" if is_nonsense else "<think>so</think>\n<answer>[[A]]</answer>", read, written
        )

    teacher_server.script = script
    return handed


def row_of(prompt: str) -> int:
    return int(re.findall(r"What is (\d+) plus 1", prompt)[0])


def start(
    runner: Any, config: dict[str, Any], pairs: Manifest, kill_at: Callable[[], bool] | None = None
) -> tuple[int, str]:
    runner.environment = {k: v for k, v in runner.environment.items() if not k.startswith("MLFLOW")}
    running = runner.start("traces", config, {"pairs": pairs})
    before = running.log.stat().st_size
    while kill_at is not None and running.process.poll() is None:
        if kill_at():
            os.killpg(running.process.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    return running.process.wait(timeout=400), running.log.read_bytes()[before:].decode()


@pytest.mark.parametrize(("machine_is_lost", "max_cost"), [(False, 0.036), (True, 0.016)])
def test_kills_and_restarts_do_not_cross_the_cap_and_a_higher_one_goes_on(
    stage_runner: Any,
    pairs: Manifest,
    teacher_server: Any,
    bills: Bills,
    tmp_path: Path,
    machine_is_lost: bool,
    max_cost: float,
) -> None:
    calls = {"concurrency": 3, "attempts": 3, "max_wait_seconds": 0.01}
    model = {"kind": "openai", "base_url": teacher_server.url, "model": "m", "max_tokens": 150, "calls": calls}
    config = {
        "teacher": model, "grammar": "think", "shard_size": 2, "max_cost": max_cost,
        "prices": {"m": PRICE.model_dump()},
    }  # fmt: skip
    runner = stage_runner("capped")
    for number in (4, 9):
        code, said = start(runner, config, pairs, lambda number=number: len(teacher_server.calls) >= number)
        assert code == -signal.SIGKILL, said
        if machine_is_lost:
            runner.environment = {**runner.environment, "REASRM_WORKDIR": str(tmp_path / f"machine {number}")}
    # What was under way on a machine that is gone with its disk cannot be known: at most that is beyond the cap.
    lost = 0.0
    if machine_is_lost:
        lost = 2 * 3 * Account(Budget(), PRICE, Kept(), at_risk=True).cost_of(Usage(2500, 150))
    code, said = start(runner, config, pairs)
    assert code == 2, said
    assert bills.cost <= max_cost + lost
    num_calls = len(teacher_server.calls)
    assert 10 < num_calls < NUM_PAIRS
    message = said.splitlines()[-1]
    found = re.search(r"\(max_cost=\$0\.0\d+\).* (\d+) tokens \(\$([\d.]+)\) are spent", message)
    assert found, message
    if not machine_is_lost:
        assert bills.cost <= float(found[2]) + 1e-4
        assert bills.tokens <= int(found[1])
    with_trace, missing = (int(n) for n in re.findall(r"(\d+) of 30 pairs have traces; (\d+) rows", message)[0])
    assert with_trace + missing == NUM_PAIRS
    assert re.search(r"would take about \d+ tokens \(\$[\d.]+\)\. Raise max_cost to go on: nothing is asked", message)

    assert start(runner, config, pairs)[0] == 2
    assert len(teacher_server.calls) == num_calls
    config["max_cost"] = 5
    code, said = start(runner, config, pairs)
    assert code == 0, said
    again = Counter(row_of(call.prompt) for call in teacher_server.calls[num_calls:])
    assert len(again) == missing
    statistics = Manifest.from_bytes((runner.directory / "output.json").read_bytes()).statistics
    assert statistics["traces"] == statistics["right"] == NUM_PAIRS
    paid = statistics["cost"] + statistics["waste"]["cost"]
    assert statistics["waste"]["cost"] > 0
    assert paid >= bills.cost - lost - 1e-4


def test_a_cap_too_small_for_one_call_says_so_without_a_call(
    stage_runner: Any, pairs: Manifest, teacher_server: Any
) -> None:
    model = {"kind": "openai", "base_url": teacher_server.url, "model": "m"}
    code, said = start(stage_runner("small"), {"teacher": model, "max_total_tokens": 5000}, pairs)
    assert code == 2, said
    assert re.search(r"0 tokens are spent, and a call for p0:ab@0.0 can take \d+ tokens", said)
    assert not teacher_server.calls
