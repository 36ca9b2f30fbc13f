"""The endpoint as an engine: answers in the order of the prompts, and never a gap in their place."""

import json
import threading
from typing import Any

import pytest

from components.adapters.engines import Completion, Sampling, TooLong, Unanswered
from components.adapters.engines.openai import OpenAIEngine
from components.core.errors import InvalidInput, Transient
from components.core.schema import Message
from components.core.teachers import CallLimits, EndpointTeacher

PROMPTS = [(Message(role="user", content=f"question {index}"),) for index in range(12)]


def engine(server: Any, **limits: Any) -> OpenAIEngine:
    calls = CallLimits(concurrency=4, attempts=2, max_wait_seconds=0.1, **limits)
    return OpenAIEngine(EndpointTeacher(base_url=server.url, model="judge"), calls)


def test_answers_come_in_the_order_of_the_prompts(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.good(call, delay_seconds=0.05 if call.number % 3 else 0.0)
    done: list[int] = []
    found = engine(teacher_server).generate(
        PROMPTS, Sampling(max_tokens=64, temperature=0.0), on_batch=lambda num, speed: done.append(num)
    )
    assert [completion.text for completion in found] == [f"re: question {index}" for index in range(12)]
    assert {(completion.truncated, completion.num_tokens) for completion in found} == {(False, 7)}
    assert sum(done) == 12
    body = teacher_server.calls[0].body
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("judge", 64, 0.0)


def test_a_cut_answer_is_marked(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=teacher_server.completion("half", "length"))
    assert engine(teacher_server).generate(PROMPTS[:1], Sampling(max_tokens=4))[0].truncated


def test_what_the_server_keeps_apart_from_the_text_stands_beside_it(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(
        body=teacher_server.completion("51 is right.", reasoning_content="17 * 3 is 51.")
    )
    (found,) = engine(teacher_server).generate(PROMPTS[:1], Sampling(max_tokens=64))
    assert (found.text, found.thinking) == ("51 is right.", "17 * 3 is 51.")


def test_an_answer_that_is_lost_in_circles_while_it_thinks_is_marked(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(
        body=teacher_server.completion(None, "length", reasoning_content="Wait. " * 200)
    )
    (found,) = engine(teacher_server).generate(PROMPTS[:1], Sampling(max_tokens=300, loop_tokens=64))
    assert (found.text, found.truncated, found.looped) == ("", True, True)


def test_a_prompt_without_an_answer_is_an_error_and_no_completion(teacher_server: Any) -> None:
    def script(call: Any) -> Any:
        return (
            teacher_server.answer(status=400, body=b"too long")
            if call.prompt == "question 3"
            else teacher_server.good(call)
        )

    teacher_server.script = script
    told: list[int] = []
    with pytest.raises(Unanswered, match=r"1 of 12 prompts .* the first is number 3: .*too long") as caught:
        engine(teacher_server).generate(
            PROMPTS, Sampling(max_tokens=64), on_completion=lambda place, completion: told.append(place)
        )
    assert caught.value.places == (3,)
    assert sorted([*told, 3]) == list(range(12))


def test_an_endpoint_that_fails_on_a_prompt_is_worth_another_run(teacher_server: Any) -> None:
    def script(call: Any) -> Any:
        return teacher_server.answer(status=500) if call.prompt == "question 3" else teacher_server.good(call)

    teacher_server.script = script
    with pytest.raises(Transient, match=r"1 of 12 prompts got no answer, .* number 3: .* other 11 are lost"):
        engine(teacher_server).generate(PROMPTS, Sampling(max_tokens=64))


def test_a_refused_key_is_said_at_once(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.answer(status=401, body=b"no")
    with pytest.raises(InvalidInput, match="401"):
        engine(teacher_server).generate(PROMPTS, Sampling(max_tokens=64))


def test_each_answer_is_reported_as_it_arrives_and_once(teacher_server: Any) -> None:
    told: dict[int, Completion] = {}
    last = threading.Event()

    def script(call: Any) -> Any:
        if call.prompt == "question 0":
            assert last.wait(180)  # the first prompt is answered when all others have been reported
        return teacher_server.good(call)

    def keep(place: int, completion: Completion) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert place not in told
        told[place] = completion
        if len(told) == 11:
            last.set()

    teacher_server.script = script
    found = engine(teacher_server).generate(PROMPTS, Sampling(max_tokens=64), on_completion=keep)
    assert list(told)[-1] == 0
    assert told == dict(enumerate(found))


def test_what_was_reported_is_kept_when_another_prompt_fails(teacher_server: Any) -> None:
    def script(call: Any) -> Any:
        return teacher_server.answer(status=500) if call.prompt == "question 3" else teacher_server.good(call)

    teacher_server.script = script
    told: list[int] = []
    with pytest.raises(Transient, match=r"number 3: HTTP 500.* The answers to the other 11 were reported and are kept"):
        engine(teacher_server).generate(
            PROMPTS, Sampling(max_tokens=64), on_completion=lambda place, completion: told.append(place)
        )
    assert sorted(told) == [place for place in range(12) if place != 3]


def test_an_error_of_the_callback_ends_the_call(teacher_server: Any) -> None:
    teacher_server.script = lambda call: teacher_server.good(call, delay_seconds=0.2)

    def fail(place: int, completion: Completion) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        engine(teacher_server).generate(PROMPTS, Sampling(max_tokens=64), on_completion=fail)
    assert len(teacher_server.calls) < 12


def refusal(message: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": "messages", "code": 400}
    return json.dumps({"error": error}).encode()


WORDINGS = [  # OpenAI's, its older one, and those of vLLM's server
    ("However, your messages resulted in 4294 tokens. Please reduce the length of the messages.", 4294),
    ("However, you requested 4203 tokens (4113 in the messages, 90 in the completion). Please reduce", 4113),
    (
        "However, you requested 90 output tokens and your prompt contains at least 4008 input tokens, for a total of "
        "at least 4098 tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
        4008,
    ),
    (
        "However, you requested 90 output tokens and your prompt contains 900000 characters (more than 100000 "
        "characters, which is the upper bound for 4007 input tokens). Please reduce",
        4008,
    ),
]


@pytest.mark.parametrize(("wording", "length"), WORDINGS)
def test_a_prompt_that_does_not_fit_is_named_as_too_long(teacher_server: Any, wording: str, length: int) -> None:
    body = refusal(f"This model's maximum context length is 4097 tokens. {wording}")

    def script(call: Any) -> Any:
        if call.prompt in ("question 3", "question 7"):
            return teacher_server.answer(status=400, body=body)
        return teacher_server.good(call)

    teacher_server.script = script
    told: list[int] = []
    said = rf"2 prompts do not fit .* context of 4097 tokens, .* number 3 with {length} tokens and 90 for its answer"
    with pytest.raises(TooLong, match=said) as caught:
        engine(teacher_server).generate(
            PROMPTS, Sampling(max_tokens=90), on_completion=lambda place, completion: told.append(place)
        )
    assert (caught.value.num_tokens, caught.value.context) == ({3: length, 7: length}, 4097)
    assert sorted([*told, 3, 7]) == list(range(12))


def test_prompts_too_long_are_told_before_one_that_is_refused_for_another_reason(teacher_server: Any) -> None:
    long = refusal(
        "This model's maximum context length is 4097 tokens. However, your messages resulted in 5000 tokens."
    )

    def script(call: Any) -> Any:
        bodies = {"question 3": long, "question 7": b"indecent"}
        if call.prompt in bodies:
            return teacher_server.answer(status=400, body=bodies[call.prompt])
        return teacher_server.good(call)

    teacher_server.script = script
    with pytest.raises(TooLong) as caught:
        engine(teacher_server).generate(PROMPTS, Sampling(max_tokens=64))
    assert caught.value.num_tokens == {3: 5000}
    left = [prompt for place, prompt in enumerate(PROMPTS) if place != 3]
    with pytest.raises(Unanswered, match=r"1 of 11 prompts .* the first is number 6: .*indecent"):
        engine(teacher_server).generate(left, Sampling(max_tokens=64))


def test_a_limit_that_alone_fills_the_context_is_no_fault_of_the_prompt(teacher_server: Any) -> None:
    body = refusal(
        "This model's maximum context length is 4097 tokens. However, you requested 5011 tokens (11 in the messages, "
        "5000 in the completion)."
    )
    teacher_server.script = lambda call: teacher_server.answer(status=400, body=body)
    with pytest.raises(Unanswered, match="or max_tokens") as caught:
        engine(teacher_server).generate(PROMPTS[:1], Sampling(max_tokens=5000))
    assert not isinstance(caught.value, TooLong)


def test_an_answer_that_was_cut_while_it_repeated_itself_is_marked(teacher_server: Any) -> None:
    stuck = "The equation is H2O" + " + H2O" * 400
    for text, finish_reason, loop_tokens, looped in [
        (stuck, "length", 512, True),
        (stuck, "length", 0, False),
        (stuck, "stop", 512, False),  # it came to its end
        (f"{stuck}, so A is better", "length", 512, False),
        ("short", "length", 512, False),
    ]:
        body = teacher_server.completion(text, finish_reason)
        teacher_server.script = lambda call, body=body: teacher_server.answer(body=body)
        (found,) = engine(teacher_server).generate(PROMPTS[:1], Sampling(max_tokens=64, loop_tokens=loop_tokens))
        assert (found.text, found.looped, found.truncated) == (text, looped, finish_reason == "length")


@pytest.mark.parametrize("how", ["answer filtered", "prompt filtered", "refused", "empty", "no text"])
def test_an_answer_that_is_declined_is_a_completion_without_text(teacher_server: Any, how: str) -> None:
    filtered = {"error": {"code": "content_filter", "message": "The prompt triggered the content management policy"}}
    declined = {
        "answer filtered": teacher_server.answer(body=teacher_server.completion("", "content_filter")),
        "prompt filtered": teacher_server.answer(status=400, body=json.dumps(filtered).encode()),
        "refused": teacher_server.answer(body=teacher_server.completion(None, refusal="I cannot judge this.")),
        "empty": teacher_server.answer(body=teacher_server.completion(" ")),
        "no text": teacher_server.answer(body=teacher_server.completion(None, reasoning_content="Hm.")),
    }

    def script(call: Any) -> Any:
        return declined[how] if call.prompt == PROMPTS[1][-1].content else teacher_server.good(call)

    teacher_server.script = script
    reported: dict[int, Completion] = {}
    found = engine(teacher_server).generate(PROMPTS, Sampling(max_tokens=64), on_completion=reported.__setitem__)
    assert [one.declined for one in found] == [place == 1 for place in range(len(PROMPTS))]
    assert found[1].text == ""
    assert reported == dict(enumerate(found))


def test_no_temperature_is_sent_to_a_model_that_takes_none(teacher_server: Any) -> None:
    settings = EndpointTeacher(base_url=teacher_server.url, model="m")
    OpenAIEngine(settings, settings.calls, send_temperature=False).generate(PROMPTS[:1], Sampling(max_tokens=64))
    OpenAIEngine(settings, settings.calls).generate(PROMPTS[:1], Sampling(max_tokens=64))
    assert ["temperature" in call.body for call in teacher_server.calls] == [False, True]
