"""What a judge is asked about a pair, in which order, how it is read, and what makes two judges the same one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.adapters.engines import Conversation, TooLong, digest_of_messages
from components.adapters.engines.transformers import TransformersEngine
from components.adapters.scalars.base import OnScore
from components.benchmark import keys
from components.benchmark.config import Config
from components.benchmark.judge import Question, ScoredJudge, WrittenJudge
from components.benchmark.judging import _place
from components.benchmark.store import Answer
from components.core import prompts
from components.core.errors import InvalidInput
from components.core.judges import EndpointJudge, ScalarEndpointJudge, ScalarJudge
from components.core.schema import Message, PreferencePair

PAIR = PreferencePair.model_validate(
    {"id": "p", "prompt": "2 + 2 = ?", "response_a": "4", "response_b": "five", "label": "A", "category": "sums"}
)


def config(**fields: Any) -> Config:
    return Config.model_validate({"base_model": "m", "max_tokens": 8, "precision": "fp32", **fields})


def no_model() -> Any:
    raise AssertionError("a model was opened")


def asked(judge: WrittenJudge | ScoredJudge, pair: PreferencePair) -> list[Question]:
    return [
        Question(digest_of_messages(messages), messages, sample)
        for messages in judge.conversations(pair)
        for sample in range(judge.samples)
    ]


WRITTEN = WrittenJudge(no_model, "rubric", config())
SCORED = ScoredJudge(no_model, streams=False)


def test_a_writing_judge_is_asked_with_the_judge_prompt_and_read_by_the_parser() -> None:
    assert WRITTEN.conversations(PAIR) == (prompts.render(PAIR, "rubric").messages,)
    text = "<eval>four it is</eval> <answer>[[A]]</answer>"
    answer = Answer(name="n", text=text, num_tokens=7, num_prompt_tokens=30)
    found = WRITTEN.judgment("base", "s", PAIR, 2, [answer])
    assert (found.model, found.suite, found.key, found.sample) == ("base", "s", "p:ab", 2)
    assert (found.verdict.winner, found.right, found.text) == ("A", True, text)
    assert (found.num_tokens, found.num_prompt_tokens, found.scores) == (7, 30, None)
    cut = WRITTEN.judgment("base", "s", PAIR, 0, [answer.model_copy(update={"truncated": True, "looped": True})])
    assert (cut.verdict.cause, cut.truncated, cut.looped, cut.right) == ("truncated", True, True, None)


def test_an_answer_that_was_declined_is_a_judgment_of_that_cause() -> None:
    found = WRITTEN.judgment("gpt", "s", PAIR, 0, [Answer(name="n", declined=True)])
    assert (found.verdict.cause, found.right, found.text) == ("declined", None, "")


def test_a_question_that_was_too_long_is_a_judgment_of_that_cause() -> None:
    answer = Answer(name="n", num_prompt_tokens=9000, too_long=True)
    found = WRITTEN.judgment("base", "s", PAIR, 0, [answer])
    assert (found.verdict.cause, found.right, found.text, found.num_prompt_tokens) == ("too_long", None, "", 9000)
    scored = SCORED.judgment("rm", "s", PAIR, 0, [answer, Answer(name="o", score=1.0)])
    assert (scored.verdict.cause, scored.right, scored.scores) == ("too_long", None, None)


def test_a_scoring_judge_is_asked_about_each_answer_once_for_both_orders() -> None:
    a, b = SCORED.conversations(PAIR)
    assert [message.content for message in (*a, *b)] == ["2 + 2 = ?", "4", "2 + 2 = ?", "five"]
    assert SCORED.conversations(PAIR.shown(True)) == (b, a)
    scores = [Answer(name="a", score=1.5, num_prompt_tokens=3), Answer(name="b", score=-0.5, num_prompt_tokens=4)]
    straight = SCORED.judgment("rm", "s", PAIR, 0, scores)
    swapped = SCORED.judgment("rm", "s", PAIR.shown(True), 0, scores[::-1])
    assert (straight.verdict.winner, straight.scores, straight.right) == ("A", (1.5, -0.5), True)
    assert (swapped.verdict.winner, swapped.scores, swapped.right) == ("B", (-0.5, 1.5), True)
    assert (straight.num_prompt_tokens, swapped.num_prompt_tokens) == (3, 4)
    assert {(judgment.text, judgment.num_tokens) for judgment in (straight, swapped)} == {("", 0)}


def test_equal_scores_are_a_tie() -> None:
    found = SCORED.judgment("rm", "s", PAIR, 0, [Answer(name="a", score=1.0), Answer(name="b", score=1.0)])
    assert (found.verdict.cause, found.right, found.scores) == ("tie", None, (1.0, 1.0))


def test_a_judge_that_is_never_asked_opens_nothing_and_can_be_closed() -> None:
    WRITTEN.close()
    SCORED.close()


def test_samples_of_a_prompt_differ_and_come_out_the_same_in_any_company(tiny_model: Path) -> None:
    settings = config(votes=3, temperature=1.0, seed=5)
    judge = WrittenJudge(lambda: TransformersEngine.load(tiny_model, 4, "fp32"), "think", settings)
    questions = asked(judge, PAIR) + asked(judge, PAIR.shown(True))
    together: list[Answer] = []
    judge.answer(questions, together.append)
    alone: list[Answer] = []
    for question in reversed(questions):
        judge.answer([question], alone.append)
    judge.close()
    assert sorted(together, key=lambda answer: answer.name) == sorted(alone, key=lambda answer: answer.name)
    assert {answer.name for answer in together} == {question.name for question in questions}
    assert len({answer.text for answer in together}) == 6


def test_too_long_prompts_cost_the_others_nothing(tiny_model: Path) -> None:
    long = PAIR.model_copy(update={"response_b": "word " * 300})
    wide = TransformersEngine.load(tiny_model, 2, "fp32")
    length, longer = (len(wide.encode(WRITTEN.conversations(pair)[0])) for pair in (PAIR, long))
    judge = WrittenJudge(lambda: TransformersEngine.load(tiny_model, 2, "fp32", longer), "rubric", config())
    questions = [*asked(judge, long), *asked(judge, PAIR), *asked(judge, long.shown(True))]
    found: list[Answer] = []
    judge.answer(questions, found.append)
    judge.close()
    by_name = {answer.name: answer for answer in found}
    assert len(found) == len(by_name) == 3
    assert [by_name[question.name].too_long for question in questions] == [True, False, True]
    assert [by_name[question.name].num_prompt_tokens for question in questions] == [longer, length, longer]


class Server:
    """A reward server that answers what fits and then says what did not, as servers do: `len(text)` is the score."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.asked: list[str] = []

    def score(self, conversations: Sequence[Conversation], on_score: OnScore | None = None) -> list[float]:
        texts = [conversation[-1].content for conversation in conversations]
        self.asked += texts
        assert on_score is not None
        for place in reversed(range(len(texts))):
            if len(texts[place]) <= 10:
                self.num_tokens += len(texts[place])
                on_score(place, float(len(texts[place])))
        if too_long := {place: len(text) for place, text in enumerate(texts) if len(text) > 10}:
            raise TooLong(too_long, 10)
        return [float(len(text)) for text in texts]

    def close(self) -> None:
        """Nothing is held."""


def test_a_server_is_not_asked_again_for_what_it_has_answered_before_it_refused_the_rest() -> None:
    server = Server()
    judge = ScoredJudge(lambda: server, streams=True)
    texts = ["12345", "x" * 11, "1"]
    conversations = [(Message(role="user", content="q"), Message(role="assistant", content=text)) for text in texts]
    questions = [Question(digest_of_messages(messages), messages) for messages in conversations]
    found: list[Answer] = []
    judge.answer(questions, found.append)
    by_name = {answer.name: answer for answer in found}
    answers = [by_name[question.name] for question in questions]
    assert [(a.score, a.num_prompt_tokens, a.too_long) for a in answers] == [
        (5.0, 5, False), (None, 11, True), (1.0, 1, False),
    ]  # fmt: skip
    assert sorted(server.asked) == sorted(texts)


MESSAGES = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=8)), max_size=3
)


@given(MESSAGES, MESSAGES)
def test_conversations_have_one_name_exactly_if_they_are_the_same(left: list[Message], right: list[Message]) -> None:
    assert (digest_of_messages(left) == digest_of_messages(right)) == (left == right)


def test_the_queue_is_longest_first_with_both_orders_of_a_pair_side_by_side() -> None:
    texts = [("0?", "aa", "bbbb"), ("1?", "cc", "dddd"), ("2?", "e" * 9, "f")]
    names = ("prompt", "response_a", "response_b")
    pairs = [
        PreferencePair.model_validate({"id": str(n), "label": "A", **dict(zip(names, text, strict=True))})
        for n, text in enumerate(texts)
    ]
    shown = [(pair.id, WRITTEN.conversations(pair.shown(swapped))[0]) for swapped in (True, False) for pair in pairs]
    order = [pair_id for pair_id, messages in sorted(shown, key=lambda one: _place(one[1]))]
    assert order == ["2", "2", "0", "0", "1", "1"]


def test_a_judge_is_known_by_what_decides_its_answers_and_by_nothing_else() -> None:
    base = keys.local_key("abc", config(), "fp32")
    same = [config(votes=4, temperature=1.0), config(seed=3), config(batch_size=7), config(shard_size=2)]
    sampled = keys.local_key("abc", same[0], "fp32")
    assert {keys.local_key("abc", one, "fp32") for one in same[1:]} == {base}
    assert keys.local_key("abc", config(votes=2, temperature=1.0), "fp32") == sampled
    others = [
        sampled,
        keys.local_key("abc", config(temperature=1.0, seed=1), "fp32"),
        keys.local_key("abd", config(), "fp32"),
        keys.local_key("abc", config(), "bf16"),
        keys.local_key("abc", config(max_tokens=9), "fp32"),
        keys.local_key("abc", config(max_model_tokens=64), "fp32"),
        keys.local_key("abc", config(loop_tokens=0), "fp32"),
        keys.local_key("abc", config(engine="vllm"), "fp32"),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_an_endpoint_or_a_reward_model_under_another_name_is_the_same_judge() -> None:
    endpoint = {"base_url": "http://h/v1", "model": "m"}
    first, renamed, other = (
        keys.endpoint_key(EndpointJudge.model_validate({**endpoint, **more}), config())
        for more in ({"name": "a"}, {"name": "b", "grammar": "think", "price": None}, {"name": "a", "model": "n"})
    )
    assert first == renamed != other
    scalars = [ScalarJudge(name=name, model=model) for name, model in (("a", "/x"), ("b", "/y"))]
    assert len({keys.scalar_key(judge, ["abc"], "fp32") for judge in scalars}) == 1
    assert keys.scalar_key(scalars[0], ["abd"], "fp32") != keys.scalar_key(scalars[0], ["abc"], "fp32")
    server = ScalarEndpointJudge(name="a", base_url="http://h", model="m", protocol="vllm")
    moved = server.model_copy(update={"name": "b"})
    assert keys.scalar_key(server, [], "fp32") == keys.scalar_key(moved, [], "fp32")


def test_a_refusal_for_another_reason_than_length_is_raised() -> None:
    class Refusing(Server):
        def score(self, conversations: Sequence[Conversation], on_score: OnScore | None = None) -> list[float]:
            raise InvalidInput("no such model")

    judge = ScoredJudge(Refusing, streams=True)
    with pytest.raises(InvalidInput, match="no such model"):
        judge.answer(asked(judge, PAIR), no_model)
