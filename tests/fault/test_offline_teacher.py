"""A teacher on this machine: it dies, is stopped, runs out of budget, and goes on where it was."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from components.adapters.engines import Completion, Conversation, Engine, OnBatch, Sampling, open_engine
from components.adapters.teachers import offline
from components.adapters.teachers.base import Failure, Meter, Outcome, OverBudget, Reply, Request, Usage
from components.adapters.teachers.offline import Offline
from components.core.errors import InvalidInput, Transient
from components.core.schema import Message
from components.core.teachers import OfflineTeacher

STORAGE: Any = None  # nothing here is on S3


def requests(num: int, max_tokens: int = 8, temperature: float | None = 1.0) -> list[Request]:
    texts = [f"question {index} " + "and more " * (index * 5 % 7) for index in range(num)]
    return [
        Request(f"p{index}:ab", (Message(role="user", content=text),), max_tokens, temperature)
        for index, text in enumerate(texts)
    ]


def teacher(model: Path | str, tmp_path: Path, meter: Meter | None = None, **settings: Any) -> Offline:
    settings = {"engine": "transformers", "batch_size": 4, **settings}
    return Offline(OfflineTeacher(model=str(model), **settings), STORAGE, tmp_path, meter)


def ask(one: Offline, asked: Sequence[Request]) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    asyncio.run(one.ask(asked, keep_in(found)))
    return found


def keep_in(found: dict[str, Outcome]) -> Callable[[Outcome], None]:
    def keep(outcome: Outcome) -> None:
        assert outcome.key not in found
        found[outcome.key] = outcome

    return keep


def table(found: dict[str, Outcome]) -> list[tuple[Any, ...]]:
    """All that is kept of replies, in the order of their keys: no times."""
    replies = [found[key] for key in sorted(found)]
    return [
        (r.key, r.teacher, r.text, r.finish_reason, r.prompt_tokens, r.completion_tokens)
        for r in replies
        if isinstance(r, Reply)
    ]


class Purse:
    """A budget in tokens, which reserves the most and takes what was used."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.reserved: dict[str, int] = {}
        self.taken: dict[str, int] = {}

    async def admit(self, request: Request, *, wait: bool = True) -> None:
        assert not wait
        if sum(self.reserved.values()) + request.max_tokens > self.tokens:
            raise OverBudget(f"{self.tokens} tokens are left")
        self.reserved[request.key] = request.max_tokens

    def settle(self, request: Request, usage: Usage | None) -> None:
        most = self.reserved.pop(request.key)
        self.taken[request.key] = most if usage is None else usage.completion_tokens
        self.tokens -= self.taken[request.key]


class Doomed:
    """The real engine, until it has completed so many prompts: then it dies as vLLM does when its process is gone."""

    def __init__(self, inner: Engine, num_prompts: int) -> None:
        self.inner, self.left = inner, num_prompts
        self.closed = False

    def generate(
        self,
        prompts: Sequence[Conversation],
        sampling: Sampling | Sequence[Sampling],
        on_batch: OnBatch | None = None,
    ) -> list[Completion]:
        self.left -= len(prompts)
        if self.left < 0:
            raise Transient("vLLM's engine died (exit code -9)")
        return self.inner.generate(prompts, sampling, on_batch)

    def close(self) -> None:
        self.closed = True
        self.inner.close()


def opening(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Engine], Engine]) -> list[Any]:
    """Put something around every engine that is opened; returns the list of them."""
    opened: list[Any] = []

    def open_wrapped(*args: Any, **kwargs: Any) -> Engine:
        opened.append(wrap(open_engine(*args, **kwargs)))
        return opened[-1]

    monkeypatch.setattr(offline, "open_engine", open_wrapped)
    return opened


@pytest.mark.parametrize("num_before", [0, 4, 9])
def test_when_the_engine_dies_what_is_finished_stands_and_the_next_attempt_fills_the_gaps(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_before: int
) -> None:
    asked = requests(11)
    undisturbed = ask(teacher(tiny_model, tmp_path), asked)
    assert len(table(undisturbed)) == 11

    opened = opening(monkeypatch, lambda inner: Doomed(inner, num_before))
    purse, found = Purse(10**6), {}
    with pytest.raises(Transient, match="engine died"):
        asyncio.run(teacher(tiny_model, tmp_path, purse).ask(asked, keep_in(found)))
    assert len(found) == num_before // 4 * 4
    assert [engine.closed for engine in opened] == [True]
    assert purse.reserved == {}
    assert purse.tokens == 10**6 - sum(row[-1] for row in table(found))

    opened = opening(monkeypatch, lambda inner: Doomed(inner, 11 - len(found)))  # one prompt more would be its death
    missing = [request for request in asked if request.key not in found]
    asyncio.run(teacher(tiny_model, tmp_path).ask(missing, keep_in(found)))
    assert opened[0].left == 0
    assert table(found) == table(undisturbed)


def test_where_nothing_is_missing_no_model_is_looked_for(tmp_path: Path) -> None:
    assert ask(teacher("/no/such/model", tmp_path), []) == {}
    with pytest.raises(InvalidInput, match="/no/such/model"):
        ask(teacher("/no/such/model", tmp_path), requests(1))


def test_a_spent_budget_loads_nothing_and_ends_the_calls_that_were_admitted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = opening(monkeypatch, lambda inner: inner)
    with pytest.raises(OverBudget):
        ask(teacher(tiny_model, tmp_path, Purse(7)), requests(3))
    assert opened == []

    pulled: list[str] = []
    asked, purse, found = requests(20), Purse(50), {}
    stream = (pulled.append(request.key) or request for request in asked)
    with pytest.raises(OverBudget, match="tokens are left"):
        asyncio.run(teacher(tiny_model, tmp_path, purse).ask(stream, keep_in(found)))
    assert purse.tokens == 50 - sum(row[-1] for row in table(found)) >= 0
    assert purse.tokens < 8
    assert purse.reserved == {}
    assert list(found) == [request.key for request in asked[: len(found)]]
    assert len(pulled) == len(found) + 1  # the one that was refused has no outcome


def test_what_a_batch_gives_back_admits_the_next(tiny_model: Path, tmp_path: Path) -> None:
    limit = 600
    asked = requests(6, max_tokens=limit)
    rich = Purse(10**6)
    undisturbed = ask(teacher(tiny_model, tmp_path, rich), asked)
    used = [rich.taken[request.key] for request in asked]
    enough = limit + sum(used[:-1])  # for all of them, if each gives back what it does not use
    assert enough < len(asked) * limit
    purse = Purse(enough)
    found = ask(teacher(tiny_model, tmp_path, purse), asked)
    assert (found.keys(), table(found)) == (undisturbed.keys(), table(undisturbed))
    assert (purse.tokens, purse.reserved) == (limit - used[-1], {})


def test_a_reply_does_not_depend_on_the_requests_beside_it(tiny_model: Path, tmp_path: Path) -> None:
    asked = requests(7)
    together = table(ask(teacher(tiny_model, tmp_path, batch_size=7), asked))
    assert together == table(ask(teacher(tiny_model, tmp_path, batch_size=2), asked))
    assert together == table(ask(teacher(tiny_model, tmp_path, batch_size=3), asked[::-1]))
    assert {row[1] for row in together} == {"tiny-random"}


def test_samples_of_one_pair_differ_and_come_again(tiny_model: Path, tmp_path: Path) -> None:
    messages = (Message(role="user", content="judge"),)
    asked = [Request(f"p:ab#{sample}", messages, 16, 1.0, sample=sample) for sample in range(5)]
    found = ask(teacher(tiny_model, tmp_path, samples=5, temperature=1.0), asked)
    assert len({row[2] for row in table(found)}) == 5
    assert table(found) == table(ask(teacher(tiny_model, tmp_path, samples=5, temperature=1.0), asked))


def test_many_samples_need_a_temperature(tiny_model: Path, tmp_path: Path) -> None:
    for temperature in (None, 0.0):
        with pytest.raises(InvalidInput, match="they would all be the same; set its temperature"):
            teacher(tiny_model, tmp_path, samples=2, temperature=temperature)


def test_the_requests_temperature_wins_over_the_settings_and_null_is_greedy(tiny_model: Path, tmp_path: Path) -> None:
    asked = [
        Request("p", (Message(role="user", content="judge"),), 16, temperature) for temperature in (None, 0.0, 1.5)
    ]
    of_settings, greedy, hot = (table(ask(teacher(tiny_model, tmp_path, temperature=1.5), [one])) for one in asked)
    assert of_settings == hot != greedy
    assert greedy == table(ask(teacher(tiny_model, tmp_path), asked[:1]))


@pytest.mark.parametrize("num_fitting", [0, 3])
def test_a_prompt_that_does_not_fit_is_refused_and_the_others_go_on(
    tiny_model: Path, tmp_path: Path, num_fitting: int
) -> None:
    long = Request("long:ab", (Message(role="user", content="word " * 2000),), 8)
    asked = [*requests(num_fitting), long]
    purse = Purse(1000)
    found = ask(teacher(tiny_model, tmp_path, purse, max_model_tokens=1000), asked)
    failure = found.pop("long:ab")
    assert isinstance(failure, Failure)
    assert failure.kind == "refused"
    assert failure.reason.endswith("does not fit into the model's context of 1000; prompts are never cut")
    assert table(found) == table(ask(teacher(tiny_model, tmp_path), asked[:-1]))
    assert purse.reserved == {}


def test_an_answer_that_is_cut_or_empty_is_marked(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terse:
        """Ends at once with odd prompts, never with even ones."""

        def generate(self, prompts: Any, sampling: Any, on_batch: Any = None) -> list[Completion]:
            return [Completion(" ", index % 2 == 0, 1, (), 9) for index in range(len(prompts))]

        def close(self) -> None:
            pass

    monkeypatch.setattr(offline, "open_engine", lambda *args, **kwargs: Terse())
    cut, empty = ask(teacher(tiny_model, tmp_path), requests(2)).values()
    assert isinstance(cut, Reply)
    assert (cut.finish_reason, cut.prompt_tokens, cut.completion_tokens) == ("length", 9, 1)
    assert isinstance(empty, Failure)
    assert empty.kind == "malformed"


def test_being_cancelled_while_the_model_loads_ends_at_once_and_frees_what_comes_later(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, release, closed = threading.Event(), threading.Event(), threading.Event()

    class Late:
        def close(self) -> None:
            closed.set()

    def load(*args: Any, **kwargs: Any) -> Any:
        assert threading.current_thread().daemon  # Else the interpreter would wait for it.
        loading.set()
        release.wait(180)
        return Late()

    monkeypatch.setattr(offline, "open_engine", load)
    purse = Purse(10**6)

    async def cancelled() -> float:
        task = asyncio.ensure_future(teacher(tiny_model, tmp_path, purse).ask(requests(3), keep_in({})))
        await asyncio.to_thread(loading.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic()

    began = asyncio.run(cancelled())
    assert time.monotonic() - began < 60  # loading takes 180
    assert (purse.reserved, purse.tokens) == ({}, 10**6)
    assert not closed.is_set()
    release.set()
    assert closed.wait(180)


def test_an_answer_with_a_nul_character_is_malformed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd:
        def generate(self, prompts: Any, sampling: Any, on_batch: Any = None) -> list[Completion]:
            return [Completion("so\x00", False, 2, (), 9) for _ in prompts]

        def close(self) -> None:
            pass

    monkeypatch.setattr(offline, "open_engine", lambda *args, **kwargs: Odd())
    (found,) = ask(teacher(tiny_model, tmp_path), requests(1)).values()
    assert isinstance(found, Failure)
    assert (found.kind, found.reason) == ("malformed", "a text with a NUL character, which no artifact can hold")


def test_being_cancelled_ends_a_long_generation_at_once(tiny_model: Path, tmp_path: Path) -> None:
    purse, found = Purse(10**9), {}
    asked = requests(4, max_tokens=7000, temperature=50.0)  # so hot that hardly any token ends it; minutes

    async def cancelled() -> None:
        task = asyncio.ensure_future(teacher(tiny_model, tmp_path, purse).ask(asked, keep_in(found)))
        while not purse.reserved:
            await asyncio.sleep(0.01)
        await asyncio.sleep(3)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    began = time.monotonic()
    asyncio.run(cancelled())
    assert time.monotonic() - began < 60
    assert found == {}
    assert (purse.reserved, purse.tokens) == ({}, 10**9)
