"""Who is told what when an engine fails, comes late, or is asked by many at once."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import pytest

from components.adapters.engines import Completion, Conversation, Engine, OnBatch, OnCompletion, Sampling
from components.adapters.judging import batching
from components.adapters.judging.asking import Asking, Comparison, Prompt
from components.adapters.judging.batching import Batcher, Ticket
from components.adapters.judging.bulk import judge_all
from components.core.errors import ReasrmError, Transient
from components.core.schema import Message, PreferencePair

Answer = Callable[[str], str]


class Scripted:
    """An engine that answers each prompt with what a function makes of its text; what that raises comes last."""

    streams: ClassVar[bool] = True

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.is_closed = False
        self.sizes: list[int] = []

    def generate(
        self,
        prompts: Sequence[Conversation],
        sampling: Sampling | Sequence[Sampling],
        on_batch: OnBatch | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        assert on_completion is not None
        self.sizes.append(len(prompts))
        failed: Exception | None = None
        for place, prompt in enumerate(prompts):
            try:
                on_completion(place, Completion(self.answer(prompt[-1].content), truncated=False, num_tokens=1))
            except (ReasrmError, RuntimeError) as error:
                failed = error
        if failed is not None:
            raise failed
        return []

    def close(self) -> None:
        self.is_closed = True


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt((Message(role="user", content=text),), Sampling(8), swapped=False, sample=0) for text in texts]


@contextmanager
def batcher(answer: Answer, batch: int, *, is_local: bool, num_workers: int = 1) -> Iterator[Batcher]:
    made = Batcher(lambda: Scripted(answer), batch=batch, is_local=is_local, num_workers=num_workers)
    made.start()
    try:
        yield made
    finally:
        made.close()


def fail_at(word: str, error: Exception) -> Answer:
    def answer(text: str) -> str:
        if word in text:
            raise error
        return f"said {text}"

    return answer


def test_all_threads_together_have_no_more_under_way_than_was_allowed() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def answer(text: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return text

    with batcher(answer, 3, is_local=False, num_workers=8) as many:
        tickets = [many.submit(prompts(f"{number} a", f"{number} b")) for number in range(12)]
        assert [[one.text for one in ticket.result(20)] for ticket in tickets] == [
            [f"{number} a", f"{number} b"] for number in range(12)
        ]
    assert 1 < most <= 3


def test_an_endpoint_that_fails_one_asker_does_not_fail_those_in_its_company() -> None:
    gate = threading.Event()

    def answer(text: str) -> str:
        gate.wait(180)
        return fail_at("bad", Transient("no answer"))(text)

    with batcher(answer, 4, is_local=False) as shared:
        good = shared.submit(prompts("g1", "g2", "g3", "g4", "g5"))  # does not fit into the batch that fails
        bad = shared.submit(prompts("bad", "b2"))
        gate.set()
        assert [one.text for one in good.result(10)] == [f"said g{number}" for number in range(1, 6)]
        with pytest.raises(Transient, match="no answer"):
            bad.result(10)
        assert shared.broken is None
        assert shared.submit(prompts("later")).result(10)[0].text == "said later"


def test_a_ticket_that_fails_while_another_thread_takes_from_it_ends_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Torn(deque[int]):
        """Prompts that wait; another thread fails their ticket between the look at how many and the taking."""

        ticket: Ticket

        def __len__(self) -> int:
            size = super().__len__()
            self.ticket.fail(Transient("no answer"))
            return size

    class TornTicket(Ticket):
        def __init__(self, prompts: Sequence[Prompt]) -> None:
            super().__init__(prompts)
            self.waiting = Torn(self.waiting)
            self.waiting.ticket = self

    with batcher(str, 4, is_local=False) as shared:
        with monkeypatch.context() as patched:
            patched.setattr(batching, "Ticket", TornTicket)
            torn = shared.submit(prompts("a", "b"))
        with pytest.raises(Transient, match="no answer"):
            torn.result(10)
        assert shared.submit(prompts("later")).result(10)[0].text == "later"


def test_an_engine_that_dies_ends_all_that_wait_and_takes_nothing_more() -> None:
    with batcher(fail_at("bad", Transient("it died")), 1, is_local=True) as shared:
        tickets = [shared.submit(prompts("bad")), shared.submit(prompts("x", "y"))]
        for ticket in tickets:
            with pytest.raises(Transient, match="it died"):
                ticket.result(10)
        assert str(shared.broken) == "it died"
        with pytest.raises(Transient, match="it died"):
            shared.submit(prompts("x"))


def test_what_is_wrong_with_one_asker_is_his_alone() -> None:
    gate = threading.Event()

    def answer(text: str) -> str:
        gate.wait(180)
        return fail_at("bad", RuntimeError("odd"))(text)

    with batcher(answer, 8, is_local=True) as shared:
        first = shared.submit(prompts("a", "b"))
        bad, good = shared.submit(prompts("bad")), shared.submit(prompts("c", "d"))
        gate.set()
        assert [one.text for one in first.result(10) + good.result(10)] == ["said a", "said b", "said c", "said d"]
        with pytest.raises(RuntimeError, match="odd"):
            bad.result(10)
        assert shared.broken is None


def test_an_engine_that_comes_after_the_end_is_closed() -> None:
    wait, made = threading.Event(), Scripted(str)

    def opener() -> Engine:
        wait.wait(180)
        return made

    late = Batcher(opener, batch=1, is_local=True)
    late.start()
    late.close(seconds=0.05)
    wait.set()
    deadline = time.monotonic() + 180
    while not made.is_closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made.is_closed


def test_a_large_file_is_not_written_out_as_prompts_all_at_once() -> None:
    named = {"response_a": "a", "response_b": "b", "label": "A"}
    pairs = [PreferencePair.model_validate({"id": str(n), "prompt": "q" * (n + 1), **named}) for n in range(10)]
    engine, done = Scripted(lambda text: "<eval>So.</eval><answer>[[A]]</answer>"), dict[int, Comparison]()
    judge_all(engine, pairs, Asking(), done.__setitem__, lambda said: None, stream_pairs=4)
    assert engine.sizes == [8, 8, 4]
    assert sorted(done) == list(range(10))
    assert {(found.tally.votes_a, found.tally.votes_b) for found in done.values()} == {(1, 1)}
