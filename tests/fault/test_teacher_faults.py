"""Everything a teacher's endpoint can do wrong, done by a real server."""

import asyncio
import gzip
import itertools
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from components.adapters.teachers import Endpoint, Failure, Outcome, OverBudget, Reply, Request, Usage
from components.adapters.teachers.limits import TokenEstimate
from components.core.errors import InvalidInput, Transient
from components.core.schema import Message
from components.core.teachers import CallLimits, EndpointTeacher

KEY = "sk-canary-0123456789abcdef"
GOOD = b'{"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}'


def requests(count: int) -> Iterator[Request]:
    for number in range(count):
        messages = (Message(role="system", content="judge"), Message(role="user", content=f"row {number}"))
        yield Request(f"row {number}", messages, max_tokens=64)


@dataclass
class Purse:
    """A meter that admits so many attempts, and remembers what it was asked and told."""

    most: int = 10**9
    admitted: list[str] = field(default_factory=list)
    settled: list[tuple[str, Usage | None]] = field(default_factory=list)

    async def admit(self, request: Request, *, wait: bool = True) -> None:
        await asyncio.sleep(0)
        if len(self.admitted) >= self.most:
            raise OverBudget("the purse is empty")
        self.admitted.append(request.key)

    def settle(self, request: Request, usage: Usage | None) -> None:
        self.settled.append((request.key, usage))


def connect(
    server: Any, meter: Purse | None = None, *, endpoint: dict[str, Any] | None = None, **calls: Any
) -> Endpoint:
    settings = EndpointTeacher.model_validate({"base_url": server.url, "model": "m"} | (endpoint or {}))
    limits = CallLimits.model_validate({"concurrency": 4, "attempts": 3, "max_wait_seconds": 1} | calls)
    return Endpoint(settings, limits, meter or Purse())


def ask(
    server: Any,
    rows: int | Iterable[Request],
    meter: Purse | None = None,
    *,
    seen: dict[str, Outcome] | None = None,
    **options: Any,
) -> dict[str, Outcome]:
    """Ask for the rows, `seen` taking their outcomes; none may get two, and without an error all get one.

    Whatever happens, the meter is told of every attempt that it admitted, and of no other.
    """
    outcomes: dict[str, Outcome] = {} if seen is None else seen
    pulled: list[str] = []
    meter = meter or Purse()

    def pull() -> Iterator[Request]:
        for request in requests(rows) if isinstance(rows, int) else rows:
            pulled.append(request.key)
            yield request

    def keep(outcome: Outcome) -> None:
        assert outcome.key not in outcomes
        outcomes[outcome.key] = outcome

    teacher = connect(server, meter, **options)
    try:
        asyncio.run(teacher.ask(pull(), keep))
        assert set(outcomes) == set(pulled)
        assert not isinstance(rows, int) or len(pulled) == rows
    finally:
        assert Counter(meter.admitted) == Counter(key for key, _ in meter.settled)
        assert len(meter.admitted) == teacher.stats.calls
        assert len(outcomes) <= len(pulled) <= len(outcomes) + teacher.calls.concurrency
    return outcomes


def timeless(outcome: Outcome) -> Outcome:
    return replace(outcome, seconds=0.0) if isinstance(outcome, Reply) else outcome


def failed(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {key: outcome.kind for key, outcome in outcomes.items() if isinstance(outcome, Failure)}


def test_every_row_is_answered_once_and_all_that_is_asked_is_sent(teacher_server: Any) -> None:
    outcomes = ask(teacher_server, 20, endpoint={"extra_body": {"top_p": 0.9}})
    assert failed(outcomes) == {}
    assert Counter(call.prompt for call in teacher_server.calls) == Counter(f"row {n}" for n in range(20))
    assert max(call.num_active for call in teacher_server.calls) <= 4
    body = teacher_server.calls[0].body
    assert (body["model"], body["max_tokens"], body["top_p"]) == ("m", 64, 0.9)
    assert body["messages"][0] == {"role": "system", "content": "judge"}
    assert "temperature" not in body
    one = outcomes["row 3"]
    assert isinstance(one, Reply)
    assert one.seconds > 0
    assert timeless(one) == Reply("row 3", "m", "re: row 3", "stop", 11, 7)


def test_429_pauses_all_calls_for_as_long_as_asked_and_halves_their_number(teacher_server: Any) -> None:
    def script(call: Any) -> Any:
        if call.number <= 4:
            return teacher_server.answer(status=429, headers={"retry-after": "1"}, delay_seconds=0.2)
        return teacher_server.good(call, delay_seconds=0.6 if call.number <= 8 else 0.05)

    teacher_server.script = script
    outcomes = ask(teacher_server, 16, max_wait_seconds=5)
    assert failed(outcomes) == {}
    assert len(teacher_server.calls) == 16 + 4
    first, later = teacher_server.calls[:4], teacher_server.calls[4:]
    assert later[0].time - first[0].time >= 1.2
    assert max(call.num_active for call in later[:4]) == 2
    assert max(call.num_active for call in later) > 2


def test_no_row_is_lost_or_asked_twice_while_an_endpoint_bears_only_a_few_calls(teacher_server: Any) -> None:
    """Being slowed down is no failure: it costs neither the row's attempts nor the run's further attempts."""
    slowed: Counter[str] = Counter()

    def script(call: Any) -> Any:
        if call.num_active > 3:
            slowed[call.prompt] += 1
            return teacher_server.answer(status=429)
        return teacher_server.good(call, delay_seconds=0.02)

    teacher_server.script = script
    calls = {"concurrency": 32, "attempts": 1, "max_retry_fraction": 0, "max_wait_seconds": 0.05}
    outcomes = ask(teacher_server, 150, **calls)
    assert failed(outcomes) == {}
    assert sum(slowed.values()) > 28
    assert Counter(call.prompt for call in teacher_server.calls) == slowed + Counter(outcomes.keys())
    assert all(o.attempts == 1 + slowed[key] for key, o in outcomes.items())
    assert max(call.num_active for call in teacher_server.calls[-50:]) <= 6


def test_rows_that_wait_for_a_place_get_one_in_turn(teacher_server: Any) -> None:
    teacher_server.script = lambda call: (
        teacher_server.answer(status=429, headers={"retry-after": "0"})
        if call.num_active > 1
        else teacher_server.good(call, delay_seconds=0.005)
    )
    order = list(ask(teacher_server, 150, concurrency=8, max_wait_seconds=0.01))
    assert all(place <= int(key.split()[1]) + 60 for place, key in enumerate(order))


def test_the_statistics_tell_how_the_calls_go(teacher_server: Any) -> None:
    status = {1: 503, 2: 429}
    teacher_server.script = lambda call: (
        teacher_server.answer(status=status[call.number]) if call.number in status else teacher_server.good(call)
    )
    teacher = connect(teacher_server, concurrency=8, max_wait_seconds=0.1)
    asyncio.run(teacher.ask(requests(2), lambda outcome: None))
    assert (teacher.stats.calls, teacher.stats.retries) == (4, 2)
    assert (teacher.stats.slow_downs, teacher.stats.limit) == (1, 4)
    asyncio.run(teacher.ask(requests(4), lambda outcome: None))
    assert (teacher.stats.calls, teacher.stats.slow_downs, teacher.stats.limit) == (8, 1, 5)


def test_an_endpoint_without_room_for_one_call_is_asked_ever_more_seldom(teacher_server: Any) -> None:
    teacher_server.script = lambda call: (
        teacher_server.answer(status=429) if call.number <= 3 else teacher_server.good(call)
    )
    assert failed(ask(teacher_server, 3, concurrency=1, max_wait_seconds=60)) == {}
    pauses = [b.time - a.time for a, b in itertools.pairwise(teacher_server.calls[:4])]
    assert all(pause >= least for pause, least in zip(pauses, (0.5, 1.0, 2.0), strict=True))


@pytest.mark.parametrize(("status", "is_slowed"), [(503, True), (529, True), (500, False)])
def test_an_overload_that_names_its_end_slows_all_calls_down(teacher_server: Any, status: int, is_slowed: bool) -> None:
    headers = {"retry-after-ms": "400", "retry-after": "1"}
    teacher_server.script = lambda call: (
        teacher_server.answer(status=status, headers=headers)
        if call.number == 1
        else teacher_server.good(call, delay_seconds=0.2 if call.number == 2 else 0.0)
    )
    teacher = connect(teacher_server, concurrency=2)
    asyncio.run(teacher.ask(requests(20), lambda outcome: None))
    first, _, third = [call.time for call in teacher_server.calls[:3]]
    assert teacher.stats.slow_downs == is_slowed
    assert (third - first >= 0.4) == is_slowed
    assert len(teacher_server.calls) == 21


def test_rows_that_failed_together_are_not_tried_again_together(teacher_server: Any) -> None:
    teacher_server.script = lambda call: (
        teacher_server.answer(status=500) if call.number <= 8 else teacher_server.good(call)
    )
    assert failed(ask(teacher_server, 8, concurrency=8)) == {}
    again = [call.time for call in teacher_server.calls[8:]]
    assert max(again) - min(again) > 0.05


@pytest.mark.parametrize("value", ["3600", formatdate(time.time() + 3600, usegmt=True), "soon"])
def test_retry_after_is_capped_and_may_be_a_date_or_nonsense(teacher_server: Any, value: str) -> None:
    teacher_server.script = lambda call: (
        teacher_server.answer(status=429, headers={"retry-after": value})
        if call.number == 1
        else teacher_server.good(call)
    )
    start = time.monotonic()
    assert failed(ask(teacher_server, 2, max_wait_seconds=0.3)) == {}
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("fault", ["500", "502", "503", "reset", "timeout"])
def test_a_passing_fault_is_tried_again(teacher_server: Any, fault: str) -> None:
    faults = {
        "reset": {"reset": True},
        "timeout": {"delay_seconds": 1.0},
    }

    def script(call: Any) -> Any:
        if call.number == 1:
            return teacher_server.answer(**faults.get(fault, {"status": int(fault) if fault.isdigit() else 200}))
        return teacher_server.good(call)

    teacher_server.script = script
    assert failed(ask(teacher_server, 3, call_seconds=0.5)) == {}
    assert len(teacher_server.calls) == 4


def test_a_lasting_fault_of_one_row_fails_that_row_after_its_attempts(teacher_server: Any) -> None:
    teacher_server.script = lambda call: (
        teacher_server.answer(status=500, body=b"overloaded") if call.prompt == "row 2" else teacher_server.good(call)
    )
    outcomes = ask(teacher_server, 6)
    assert failed(outcomes) == {"row 2": "transport"}
    assert "HTTP 500: overloaded" in str(outcomes["row 2"])
    assert Counter(call.prompt for call in teacher_server.calls)["row 2"] == 3
    assert len(teacher_server.calls) == 5 + 3


def test_no_attempt_begins_after_the_row_s_deadline(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(status=503, delay_seconds=0.2)
    assert failed(ask(teacher_server, 1, attempts=20, row_seconds=0.8)) == {"row 0": "transport"}
    assert len(teacher_server.calls) < 10


def test_400_fails_one_row_without_another_try(teacher_server: Any) -> None:
    teacher_server.script = lambda call: (
        teacher_server.answer(status=400, body=b'{"error": "too long"}')
        if call.prompt == "row 1"
        else teacher_server.good(call)
    )
    outcomes = ask(teacher_server, 5)
    assert failed(outcomes) == {"row 1": "refused"}
    assert "too long" in str(outcomes["row 1"])
    assert len(teacher_server.calls) == 5


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_concerns_all_calls_stops_at_once(teacher_server: Any, status: int) -> None:
    teacher_server.script = lambda call: teacher_server.answer(status=status, body=b"no such model")
    with pytest.raises(InvalidInput, match=f"HTTP {status}: no such model"):
        ask(teacher_server, 50)
    assert len(teacher_server.calls) <= 4


@pytest.mark.parametrize(
    ("status", "body"), [(402, b"no credit"), (405, b"use GET"), (429, b'{"error": {"code": "insufficient_quota"}}')]
)
def test_what_no_waiting_mends_stops_at_once_and_keeps_what_is_under_way(
    teacher_server: Any, status: int, body: bytes
) -> None:
    seen: dict[str, Outcome] = {}
    teacher_server.script = lambda call: (
        teacher_server.answer(status=status, body=body)
        if call.prompt == "row 3"
        else teacher_server.good(call, delay_seconds=0.3)
    )
    with pytest.raises(InvalidInput, match="Check address, model, credit and key"):
        ask(teacher_server, 50, seen=seen)
    assert set(seen) == {"row 0", "row 1", "row 2"}
    assert len(teacher_server.calls) == 4


@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://other/v1", "//other/v1"])
def test_a_redirect_leads_nowhere(teacher_server: Any, other_server: Any, status: int, target: str) -> None:
    location = target.replace("//other", f"//127.0.0.1:{other_server.server_address[1]}")
    teacher_server.script = lambda call: teacher_server.answer(status=status, headers={"location": location})
    with pytest.raises(InvalidInput, match="redirects are not followed"):
        ask(teacher_server, 5)
    assert other_server.calls == []
    assert len(teacher_server.calls) <= 4


def test_redirects_are_not_followed(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(
        status=307, headers={"location": f"{teacher_server.url}/chat/completions"}
    )
    with pytest.raises(InvalidInput, match="redirects are not followed"):
        ask(teacher_server, 50)
    assert len(teacher_server.calls) <= 4


MALFORMED = {
    "garbage": b"{'choices'",
    "an error page": b"<html>Bad gateway</html>",
    "nothing": b"",
    "a list": b"[]",
    "no choices": b'{"choices": []}',
    "null text": b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
    "empty text": b'{"choices": [{"message": {"content": " "}, "finish_reason": "stop"}]}',
    "no finish_reason": b'{"choices": [{"message": {"content": "x"}, "finish_reason": null}]}',
    "number": b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}',
    "surrogate": b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}',
    "NaN": b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "logprob": NaN}',
    "odd usage": GOOD[:-1] + b', "usage": {"prompt_tokens": "?"}}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_nonsense_with_status_200_is_tried_once_more_and_then_fails_the_row(teacher_server: Any, name: str) -> None:
    teacher_server.script = lambda call: (
        teacher_server.answer(body=MALFORMED[name]) if call.prompt == "row 0" else teacher_server.good(call)
    )
    outcomes = ask(teacher_server, 3, attempts=6)
    assert failed(outcomes) == {"row 0": "malformed"}
    assert Counter(call.prompt for call in teacher_server.calls) == {"row 0": 2, "row 1": 1, "row 2": 1}


def test_an_answer_without_end_is_cut_off(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=b" " * (5 * 2**20))
    assert failed(ask(teacher_server, 1)) == {"row 0": "malformed"}


def test_an_answer_that_unpacks_to_something_huge_is_not_unpacked(teacher_server: Any) -> None:
    bomb = gzip.compress(b" " * (64 * 2**20))
    teacher_server.script = lambda call: teacher_server.answer(body=bomb, headers={"content-encoding": "gzip"})
    outcomes = ask(teacher_server, 1)
    assert failed(outcomes) in ({"row 0": "malformed"}, {"row 0": "transport"})
    assert all(call.headers["Accept-Encoding"] == "identity" for call in teacher_server.calls)


def test_a_proxy_is_taken_from_the_environment(
    teacher_server: Any, other_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", other_server.url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "")
    assert failed(ask(teacher_server, 2)) == {}
    assert (len(teacher_server.calls), len(other_server.calls)) == (0, 2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert failed(ask(teacher_server, 2)) == {}
    assert (len(teacher_server.calls), len(other_server.calls)) == (2, 2)


def test_a_prompt_of_two_megabytes_is_sent(teacher_server: Any) -> None:
    request = Request("long", (Message(role="user", content="ü" * 2**20),), max_tokens=64)
    teacher_server.script = lambda call: teacher_server.answer(body=GOOD)
    assert failed(ask(teacher_server, [request])) == {}
    assert teacher_server.calls[0].prompt == "ü" * 2**20


def test_nonsense_once_is_forgiven(teacher_server: Any) -> None:
    teacher_server.script = lambda call: (
        teacher_server.answer(body=b"<html>") if call.number == 1 else teacher_server.good(call)
    )
    assert failed(ask(teacher_server, 2)) == {}


def test_usage_may_be_missing(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=GOOD)
    assert timeless(ask(teacher_server, 1)["row 0"]) == Reply("row 0", "m", "fine", "stop", 0, 0)


def test_a_dead_endpoint_opens_the_circuit(teacher_server: Any) -> None:
    seen: dict[str, Outcome] = {}
    teacher_server.script = lambda call: (
        teacher_server.good(call) if call.number <= 5 else teacher_server.answer(status=503)
    )
    with pytest.raises(Transient, match=r"failed 3 rows in a row, the last with: HTTP 503"):
        ask(teacher_server, 1000, attempts=2, breaker_rows=3, seen=seen)
    # Each of the three good answers that may be late begins the count anew, and four rows are on their way.
    assert 5 + 3 <= len(seen) <= 5 + 3 + 4 + 3 * 2
    assert len(teacher_server.calls) <= 5 + 2 * (3 + 4 + 3 * 2)


def test_an_endpoint_that_is_not_there_is_transient(teacher_server: Any) -> None:
    with pytest.raises(Transient, match="ClientConnectorError"):
        ask(teacher_server, 9, endpoint={"base_url": "http://127.0.0.1:9/v1"}, attempts=1, breaker_rows=5)


def test_rows_that_fail_on_their_own_do_not_open_the_circuit(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(status=400)
    assert len(failed(ask(teacher_server, 20, breaker_rows=3))) == 20


def test_a_slow_drip_ends_at_the_call_s_deadline(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=GOOD, drip_seconds=0.1)  # minutes
    start = time.monotonic()
    outcomes = ask(teacher_server, 1, attempts=2, call_seconds=0.5)
    assert failed(outcomes) == {"row 0": "transport"}
    assert "no whole answer within 0.5 seconds" in str(outcomes["row 0"])
    assert time.monotonic() - start < 30


def test_a_byte_a_second_ends_at_the_call_s_deadline_too(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=GOOD, drip_seconds=1.0)
    start = time.monotonic()
    purse = Purse()
    assert failed(ask(teacher_server, 1, purse, attempts=1, call_seconds=1.5)) == {"row 0": "transport"}
    assert 1.4 < time.monotonic() - start < 30
    assert purse.settled == [("row 0", None)]


def test_a_truncated_answer_is_a_reply_that_says_so(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=teacher_server.completion("half", "length"))
    purse = Purse()
    assert timeless(ask(teacher_server, 1, purse)["row 0"]) == Reply("row 0", "m", "half", "length", 11, 7)
    assert purse.settled == [("row 0", Usage(11, 7))]
    teacher_server.script = lambda call: teacher_server.answer(body=teacher_server.completion(None, "length"))
    assert timeless(ask(teacher_server, 1)["row 0"]) == Reply("row 0", "m", "", "length", 11, 7)


def test_a_filtered_answer_is_a_refusal(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=teacher_server.completion("", "content_filter"))
    assert failed(ask(teacher_server, 1)) == {"row 0": "refused"}
    assert len(teacher_server.calls) == 1


def test_a_refusal_in_words_is_a_refusal(teacher_server: Any) -> None:
    body = teacher_server.completion(None, refusal="I cannot help with that")
    teacher_server.script = lambda call: teacher_server.answer(body=body)
    outcomes = ask(teacher_server, 1)
    assert failed(outcomes) == {"row 0": "refused"}
    assert "I cannot help with that" in str(outcomes["row 0"])
    assert len(teacher_server.calls) == 1


def test_reasoning_that_the_server_keeps_apart_is_kept_apart(teacher_server: Any) -> None:
    body = teacher_server.completion("A.", reasoning_content="because")
    teacher_server.script = lambda call: teacher_server.answer(body=body)
    outcome = ask(teacher_server, 1)["row 0"]
    assert isinstance(outcome, Reply)
    assert (outcome.text, outcome.reasoning) == ("A.", "because")


def test_the_key_is_sent_and_never_told(
    teacher_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG, logger="components")
    teacher_server.script = lambda call: teacher_server.answer(
        status=500 if call.number < 3 else 400, body=f"bad key {call.headers['Authorization']}".encode()
    )
    outcomes = ask(teacher_server, 1, api_key_env="TEACHER_KEY", attempts=6)
    assert failed(outcomes) == {"row 0": "refused"}
    assert teacher_server.calls[0].headers["Authorization"] == f"Bearer {KEY}"
    teacher_server.script = lambda call: teacher_server.answer(status=401, body=f"bad key {KEY}".encode())
    with pytest.raises(InvalidInput) as caught:
        ask(teacher_server, 1, api_key_env="TEACHER_KEY")
    assert "TEACHER_KEY" in str(caught.value)
    assert caplog.text
    assert KEY not in caplog.text + str(caught.value) + str(outcomes)


def test_a_key_that_is_not_set_is_named_before_any_call(teacher_server: Any) -> None:
    with pytest.raises(InvalidInput, match="REASRM_ABSENT_KEY is not set"):
        ask(teacher_server, 1, api_key_env="REASRM_ABSENT_KEY")
    assert teacher_server.calls == []


@pytest.mark.parametrize("key", ["sk-one\nHost: other", "schlüssel", "sk-\x00"])
def test_a_key_that_would_bend_the_header_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("os.environ", {"TEACHER_KEY": key})
    with pytest.raises(InvalidInput, match="TEACHER_KEY holds characters that no key has") as caught:
        Endpoint(EndpointTeacher(base_url="http://h/v1", model="m"), CallLimits(api_key_env="TEACHER_KEY"))
    assert key not in str(caught.value)


def test_an_address_that_cannot_be_called_is_the_user_s_to_mend(teacher_server: Any) -> None:
    with pytest.raises(InvalidInput, match=r"http://127.0.0.1:99999/v1/chat/completions is no address"):
        ask(teacher_server, 3, endpoint={"base_url": "http://127.0.0.1:99999/v1"})


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://h/v1", "http://user:pass@h/v1", "h/v1", "http://h/v1?k=1"]
)
def test_only_plain_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(ValidationError):
        EndpointTeacher(base_url=url, model="m")


def test_a_key_is_named_so_that_logs_can_mask_it() -> None:
    with pytest.raises(ValidationError):
        CallLimits(api_key_env="TEACHER")


USAGE = b', "usage": {"prompt_tokens": 5, "completion_tokens": 3}}'
PAID = {
    "good": ({"body": GOOD[:-1] + USAGE}, Usage(5, 3)),
    "good without usage": ({"body": GOOD}, None),
    "truncated": ({"body": GOOD[:-1].replace(b"stop", b"length") + USAGE}, Usage(5, 3)),
    "refused": ({"body": GOOD[:-1].replace(b"stop", b"content_filter") + USAGE}, Usage(5, 3)),
    "malformed": ({"body": b'{"choices": []' + USAGE}, Usage(5, 3)),
    "malformed twice": ({"body": b'{"choices": [NaN]' + USAGE}, Usage(5, 3)),
    "malformed usage": ({"body": GOOD[:-1] + b', "usage": {"prompt_tokens": 5}}'}, None),
    "an error page": ({"body": b"<html>"}, None),
    "400": ({"status": 400}, Usage()),
    "429": ({"status": 429}, Usage()),
    "500": ({"status": 500, "body": b"{}"}, Usage()),
    "paid 500": ({"status": 500, "body": GOOD[:-1] + USAGE}, Usage(5, 3)),
    "reset": ({"reset": True}, None),
    "timeout": ({"body": GOOD, "delay_seconds": 0.5}, None),
    "cut off": ({"body": GOOD, "headers": {"content-length": "9999"}, "drip_seconds": 0.001}, None),
    "401": ({"status": 401}, Usage()),
}


@pytest.mark.parametrize("name", PAID)
def test_every_attempt_is_settled_once_with_what_it_took(teacher_server: Any, name: str) -> None:
    answer, usage = PAID[name]
    teacher_server.script = lambda call: (
        teacher_server.answer(**answer) if call.number == 1 else teacher_server.good(call)
    )
    purse = Purse()
    try:
        ask(teacher_server, 1, purse, call_seconds=0.3, max_wait_seconds=0.01)
    except InvalidInput:
        assert name == "401"
    assert purse.settled == [("row 0", usage), ("row 0", Usage(11, 7))][: len(teacher_server.calls)]


def test_a_call_that_never_reached_the_endpoint_costs_nothing(teacher_server: Any) -> None:
    purse = Purse()
    nowhere = {"base_url": "http://127.0.0.1:9/v1"}
    assert failed(ask(teacher_server, 1, purse, endpoint=nowhere, attempts=2)) == {"row 0": "transport"}
    assert purse.settled == [("row 0", Usage())] * 2


def test_over_budget_lets_the_calls_under_way_end_and_reports_them(teacher_server: Any) -> None:
    seen: dict[str, Outcome] = {}
    purse = Purse(most=6)
    teacher_server.script = lambda call: teacher_server.good(call, delay_seconds=0.05 * call.number)
    with pytest.raises(OverBudget):
        ask(teacher_server, 1000, purse, seen=seen)
    assert set(seen) == set(purse.admitted) == {f"row {number}" for number in range(6)}
    assert failed(seen) == {}
    assert [usage for _, usage in purse.settled] == [Usage(11, 7)] * 6


def test_a_row_that_the_budget_leaves_halfway_has_no_outcome_and_nothing_waits_for_it(teacher_server: Any) -> None:
    """Row 0 waits for its second attempt, row 1 fails after the budget is spent: both are left to the next run."""
    faults = {
        "row 0": {"status": 500, "headers": {"retry-after": "60"}},
        "row 1": {"status": 500, "delay_seconds": 0.5},
    }
    seen: dict[str, Outcome] = {}
    teacher_server.script = lambda call: (
        teacher_server.answer(**faults[call.prompt]) if call.prompt in faults else teacher_server.good(call)
    )
    start = time.monotonic()
    with pytest.raises(OverBudget):
        ask(teacher_server, 1000, Purse(most=9), seen=seen, max_wait_seconds=60)
    assert time.monotonic() - start < 30
    assert set(seen) == {f"row {number}" for number in range(2, 9)}


def test_a_cancelled_session_settles_what_it_had_admitted(teacher_server: Any) -> None:
    purse = Purse()
    teacher_server.script = lambda call: teacher_server.good(call, delay_seconds=5)

    async def cancel() -> None:
        task = asyncio.create_task(connect(teacher_server, purse).ask(requests(100), lambda outcome: None))
        while len(teacher_server.calls) < 4:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert Counter(purse.admitted) == Counter(key for key, _ in purse.settled)
    assert [usage for _, usage in purse.settled] == [None] * 4


def test_a_run_that_needs_too_many_further_attempts_stops_and_says_why(teacher_server: Any) -> None:
    called: Counter[str] = Counter()
    seen: dict[str, Outcome] = {}

    def script(call: Any) -> Any:
        called[call.prompt] += 1
        fault = called[call.prompt] == 1 and int(call.prompt.split()[1]) >= 20
        return teacher_server.answer(status=500, body=b"out of memory") if fault else teacher_server.good(call)

    teacher_server.script = script
    reason = r"further attempts for \d+ rows \(\d+%\), more than max_retry_fraction=0.1 .* HTTP 500: out of memory"
    with pytest.raises(Transient, match=reason):
        ask(teacher_server, 1000, seen=seen, max_retry_fraction=0.1, max_wait_seconds=0.05)
    assert 7 <= sum(count - 1 for count in called.values()) <= 10
    assert set(seen) == set(called)


def test_calls_are_spread_over_the_minute(teacher_server: Any) -> None:
    assert failed(ask(teacher_server, 30, requests_per_minute=1200, concurrency=16)) == {}
    times = [call.time for call in teacher_server.calls]
    assert 1.3 < times[-1] - times[0] < 20
    for first, last in itertools.combinations(range(30), 2):
        assert last - first <= 20 * (times[last] - times[first]) + 1200 / 240 + 1


def test_sixty_calls_a_minute_is_one_a_second_from_the_start(teacher_server: Any) -> None:
    assert failed(ask(teacher_server, 3, requests_per_minute=60)) == {}
    times = [call.time for call in teacher_server.calls]
    assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(times))
    assert times[-1] - times[0] < 20


def test_further_attempts_are_calls_too(teacher_server: Any) -> None:
    teacher_server.script = lambda call: (
        teacher_server.answer(status=500) if call.number <= 3 else teacher_server.good(call)
    )
    assert failed(ask(teacher_server, 3, requests_per_minute=120, max_wait_seconds=0.01)) == {}
    times = [call.time for call in teacher_server.calls]
    assert len(times) == 6
    assert times[-1] - times[0] > 2.3


def test_tokens_are_spread_over_the_minute(teacher_server: Any) -> None:
    rows = [Request(f"row {n}", (Message(role="user", content="x" * 60),), max_tokens=80) for n in range(8)]
    assert failed(ask(teacher_server, rows, tokens_per_minute=12_000)) == {}
    times = [call.time for call in teacher_server.calls]
    # 60 characters are 20 tokens at first and then 11, as the server counts them; 200 tokens a second are allowed.
    assert 7 * 91 / 200 - 12_000 / 240 / 200 - 0.05 < times[-1] - times[0] < 7 * 100 / 199 + 20
    for first, last in itertools.combinations(range(8), 2):
        assert (last - first) * 91 <= 200 * (times[last] - times[first] + 0.05) + 12_000 / 240


def test_a_prompt_s_tokens_are_guessed_from_its_characters_and_then_from_what_was_counted() -> None:
    request = Request("r", (Message(role="system", content="x" * 10), Message(role="user", content="x" * 90)), 8)
    estimate = TokenEstimate()
    assert estimate.prompt_tokens(request) == 34
    estimate.learn(request, Reply("r", "m", "text", "stop", 0, 0))
    assert estimate.prompt_tokens(request) == 34
    estimate.learn(request, Reply("r", "m", "text", "stop", 25, 0))
    assert estimate.prompt_tokens(request) == 25


def test_a_row_that_is_too_large_for_a_minute_is_said_so(teacher_server: Any) -> None:
    with pytest.raises(InvalidInput, match=r"row 0 needs about 4 tokens .* max_tokens=64, more than the .*=60 "):
        ask(teacher_server, 3, tokens_per_minute=60)
    assert teacher_server.calls == []


def test_a_certificate_that_nobody_vouches_for_is_the_user_s_to_mend(tmp_path: Path, teacher_server: Any) -> None:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    form, without = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = certificate.public_bytes(encoding) + key.private_bytes(encoding, form, without)
    (tmp_path / "server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_shake_hands, args=(listening, context), daemon=True)
        thread.start()
        address = {"base_url": f"https://127.0.0.1:{listening.getsockname()[1]}/v1"}
        with pytest.raises(InvalidInput, match=r"certificate of https://127.* cannot be verified.*SSL_CERT_FILE"):
            ask(teacher_server, 1, endpoint=address)
    thread.join(5)


def _shake_hands(listening: socket.socket, context: ssl.SSLContext) -> None:
    connection, _ = listening.accept()
    with connection:
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            return


FAULTS = {
    "good": {},
    "truncated": {"body": GOOD.replace(b"stop", b"length")},
    "refused": {"status": 400},
    "filtered": {"body": GOOD.replace(b"stop", b"content_filter")},
    "garbage": {"body": b"<html>"},
    "slowed": {"status": 429},
    "told to wait": {"status": 429, "headers": {"retry-after": "0"}},
    "overloaded": {"status": 503, "headers": {"retry-after": "0"}},
    "broken": {"status": 500},
    "reset": {"reset": True},
    "late": {"body": GOOD, "delay_seconds": 0.15},
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(st.sampled_from(sorted(FAULTS)), max_size=24),
    rows=st.integers(0, 12),
    concurrency=st.integers(1, 6),
    most=st.one_of(st.none(), st.integers(0, 12)),
)
def test_whatever_the_endpoint_does_each_row_has_one_outcome_and_each_attempt_one_bill(
    teacher_server: Any, faults: list[str], rows: int, concurrency: int, most: int | None
) -> None:
    def script(call: Any) -> Any:
        fault = FAULTS[faults[call.number - 1]] if call.number <= len(faults) else {}
        return teacher_server.answer(**fault) if fault else teacher_server.good(call)

    teacher_server.calls, teacher_server.script = [], script
    seen: dict[str, Outcome] = {}
    purse = Purse() if most is None else Purse(most)
    patience = {"breaker_rows": 1000, "max_retry_fraction": 1000, "max_wait_seconds": 0.01, "call_seconds": 0.1}
    try:
        ask(teacher_server, rows, purse, seen=seen, concurrency=concurrency, **patience)
    except OverBudget:
        assert len(purse.admitted) == most
    replies = [outcome for outcome in seen.values() if isinstance(outcome, Reply)]
    assert {outcome.text for outcome in replies} <= {"fine"} | {f"re: row {number}" for number in range(rows)}
    attempts = Counter(purse.admitted)
    assert all(outcome.attempts == attempts[key] for key, outcome in seen.items())
