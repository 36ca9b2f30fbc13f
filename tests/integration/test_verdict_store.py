"""The verdict store on a real S3 server: what was judged once is never judged again, in whatever run it turns up."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from components.adapters.engines import Completion, OnBatch, OnCompletion, Sampling, digest_of_messages
from components.adapters.engines.transformers import TransformersEngine
from components.adapters.progress import Progress
from components.adapters.scalars.base import OnScore
from components.adapters.scalars.transformers import TransformersScorer
from components.adapters.stage import Output
from components.benchmark import keys
from components.benchmark.config import Config
from components.benchmark.judge import ScoredJudge, WrittenJudge, answer_name
from components.benchmark.judging import judge_pairs
from components.benchmark.store import Answer, VerdictStore
from components.core import prompts
from components.core.errors import ReasrmError, Transient
from components.core.schema import Judgment, PreferencePair

UNTRACKED: Any = None  # judging logs nothing to MLflow


def config(**fields: Any) -> Config:
    settings = {"base_model": "m", "max_tokens": 8, "batch_size": 2, "shard_size": 3, "precision": "fp32"}
    return Config.model_validate(settings | fields)


def pairs(start: int, end: int, words: int = 0) -> list[PreferencePair]:
    return [
        PreferencePair.model_validate(
            {
                "id": f"p{n}",
                "prompt": f"{n} + {n} = ?",
                "response_a": f"It is {2 * n}." + " surely" * (n * 3 % 5 + words),
                "response_b": f"It is {2 * n + 1}.",
                "label": "A" if n % 2 else "B",
                "category": "sums",
            }
        )
        for n in range(start, end)
    ]


class Recording(TransformersEngine):
    """The real engine, which keeps what it was asked (the calls' prompts) and can die after some completions."""

    calls: ClassVar[list[list[str]]] = []
    dies_after: ClassVar[int | None] = None

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        on_batch: OnBatch | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        self.check(prompts)
        type(self).calls.append([self.tokenizer.decode(ids) for ids in prompts])
        num_done = 0

        def die(place: int, completion: Completion) -> None:
            nonlocal num_done
            num_done += 1
            if on_completion is not None:
                on_completion(place, completion)
            if num_done == self.dies_after:
                self._closed.set()

        return super().generate_ids(prompts, sampling, on_batch, die)


class Streaming(Recording):
    """The same, handed everything in one call."""

    streams = True


@pytest.fixture(autouse=True)
def _nothing_recorded() -> None:
    Recording.calls.clear()
    Recording.dies_after = None


@pytest.fixture
def bench(s3: Any, tmp_path: Path, tiny_model: Path) -> "Callable[..., dict[str, list[Judgment]]]":
    """A function that judges sets of pairs in a run of its own (`run`), with the tiny model as this or that judge."""

    def judge(
        sets: dict[str, list[PreferencePair]],
        *,
        run: str = "one",
        model: str = "base",
        engine: type[TransformersEngine] = Recording,
        context: int | None = None,
        **settings: Any,
    ) -> dict[str, list[Judgment]]:
        chosen = config(max_model_tokens=context, **settings)
        key = keys.local_key("tiny", chosen, "fp32")
        judge = WrittenJudge(lambda: engine.load(tiny_model, 2, "fp32", context), "rubric", chosen)
        return judge_pairs(model, judge, key, sets, chosen, output_of(s3, tmp_path, run))

    return judge


def output_of(s3: Any, tmp_path: Path, run: str) -> Output:
    uri = f"{s3.prefix}/benchmark/{run}"
    return Output(uri, tmp_path, tmp_path, s3.storage, UNTRACKED, Progress("benchmark"), run)


def shards(s3: Any) -> dict[str, bytes]:
    listed = s3.storage.list(f"{s3.prefix}/benchmark/verdicts/")
    return {info.uri: s3.storage.read_bytes(info.uri) for info in listed}


def asked() -> list[str]:
    return [prompt for call in Recording.calls for prompt in call]


def unnamed(rows: list[Judgment]) -> list[Judgment]:
    return [row.model_copy(update={"model": ""}) for row in rows]


def test_every_pair_is_judged_in_both_orders_and_slices_are_committed_in_turn(bench: Any, s3: Any) -> None:
    judged = bench({"a": pairs(0, 4)})["a"]
    assert [row.key for row in judged] == [f"p{n}:{order}" for n in range(4) for order in ("ab", "ba")]
    assert [row.right for row in judged] == [row.verdict.winner and row.verdict.winner == row.label for row in judged]
    assert [len(call) for call in Recording.calls] == [3, 3, 2]
    lengths = [len(prompt) for prompt in asked()]
    assert lengths == sorted(lengths, reverse=True)
    rows = [json.loads(line) for data in shards(s3).values() for line in data.splitlines()]
    assert len(shards(s3)) == 3
    assert {row["text"] for row in rows} == {row.text for row in judged}
    assert all("verdict" not in row and row["num_tokens"] == 8 for row in rows)


def test_a_judge_that_has_answered_everything_is_not_even_opened(bench: Any, s3: Any, tmp_path: Path) -> None:
    first = bench({"a": pairs(0, 3)})
    settings = config()

    def no_model() -> Any:
        raise AssertionError("the model was loaded")

    judge, key = WrittenJudge(no_model, "rubric", settings), keys.local_key("tiny", settings, "fp32")
    sets = {"renamed": pairs(0, 3)}
    again = judge_pairs("champion", judge, key, sets, settings, output_of(s3, tmp_path, "next-week"))
    assert [(row.model, row.suite) for row in again["renamed"]] == [("champion", "renamed")] * 6
    assert [row.text for row in again["renamed"]] == [row.text for row in first["a"]]


def test_one_more_suite_costs_its_new_prompts_alone(bench: Any) -> None:
    first = bench({"a": pairs(0, 4)})
    Recording.calls.clear()
    second = bench({"a": pairs(0, 4), "b": pairs(2, 7)}, run="two")
    assert len(asked()) == len(set(asked())) == 6
    assert second["a"] == first["a"]
    assert [row.text for row in second["b"][:4]] == [row.text for row in first["a"][4:]]
    Recording.calls.clear()
    assert unnamed(bench({"b": pairs(2, 7)}, run="three", model="other")["b"]) == unnamed(second["b"])
    assert asked() == []


def test_another_prompt_or_another_setting_is_judged_anew(bench: Any) -> None:
    bench({"a": pairs(0, 2)})
    Recording.calls.clear()
    changed = [*pairs(0, 1), *pairs(1, 2, words=1)]
    bench({"a": changed}, run="two")
    assert len(asked()) == 2
    Recording.calls.clear()
    bench({"a": pairs(0, 2)}, run="three", max_tokens=9)
    assert len(asked()) == 4


def test_more_votes_only_add_samples(bench: Any) -> None:
    two = bench({"a": pairs(0, 3)}, votes=2, temperature=1.0)["a"]
    assert len(asked()) == 12
    Recording.calls.clear()
    five = bench({"a": pairs(0, 3)}, run="two", votes=5, temperature=1.0)["a"]
    assert len(asked()) == 18
    assert [row for row in five if row.sample < 2] == two
    assert [row.sample for row in five] == [*range(5)] * 6
    assert len({row.text for row in five[:5]}) == 5


@pytest.mark.parametrize("engine", [Recording, Streaming])
def test_prompts_that_are_too_long_are_counted_and_not_tried_again(bench: Any, engine: Any, tiny_model: Path) -> None:
    long = pairs(9, 10, words=200)
    wide = TransformersEngine.load(tiny_model, 1, "fp32")
    context = len(wide.encode(prompts.render(long[0], "rubric").messages))
    judged = bench({"a": [*pairs(0, 2), *long]}, engine=engine, context=context)["a"]
    assert [row.verdict.cause == "too_long" for row in judged] == [False] * 4 + [True] * 2
    assert [(row.text, row.num_prompt_tokens) for row in judged[4:]] == [("", context)] * 2
    assert len(asked()) == 4
    again = bench({"a": [*pairs(0, 2), *long]}, run="two", engine=engine, context=context)["a"]
    assert again == judged
    assert len(asked()) == 4


def test_an_engine_that_dies_loses_its_slice_and_a_resumed_run_makes_the_same_batches(bench: Any, s3: Any) -> None:
    calm = bench({"a": pairs(0, 5)}, max_tokens=9)
    batches, expected = list(Recording.calls), sorted(shards(s3).values())
    assert [len(call) for call in batches] == [3, 3, 3, 1]
    s3.storage.delete(shards(s3))
    Recording.calls.clear()
    Recording.dies_after = 2  # within a slice of three, of which two make a batch
    with pytest.raises(Transient, match="closed"):
        bench({"a": pairs(0, 5)}, max_tokens=9, run="two")
    assert shards(s3) == {}
    Recording.dies_after = None
    assert bench({"a": pairs(0, 5)}, max_tokens=9, run="two") == calm
    assert Recording.calls == [batches[0], *batches]
    assert sorted(shards(s3).values()) == expected


def test_an_engine_that_streams_loses_nothing_that_it_has_finished(bench: Any, s3: Any) -> None:
    Recording.dies_after = 4
    with pytest.raises(Transient, match="closed"):
        bench({"a": pairs(0, 5)}, engine=Streaming)
    assert [len(data.splitlines()) for data in shards(s3).values()] in ([3, 1], [1, 3])
    kept = {json.loads(line)["name"] for data in shards(s3).values() for line in data.splitlines()}
    Recording.dies_after = None
    Recording.calls.clear()
    judged = bench({"a": pairs(0, 5)}, engine=Streaming)["a"]
    assert len(judged) == 10
    assert len(kept) == 4
    assert [len(call) for call in Recording.calls] == [6]


def test_verdicts_are_read_anew_from_what_was_written(bench: Any, s3: Any, tmp_path: Path) -> None:
    (pair,) = pairs(1, 2)
    texts = {False: "<eval>so</eval> <answer>[[A]]</answer>", True: "<eval>so</eval> <answer>[[A]]"}
    names = {
        swapped: answer_name(digest_of_messages(prompts.render(pair.shown(swapped), "rubric").messages), 0)
        for swapped in texts
    }
    store = VerdictStore(output_of(s3, tmp_path, "hand"), keys.local_key("tiny", config(), "fp32"), [*names.values()])
    with store.writing():
        store.put(Answer(name=names[swapped], text=text, num_tokens=9) for swapped, text in texts.items())
    straight, swapped = bench({"a": [pair]})["a"]
    assert (straight.verdict.winner, straight.right, swapped.verdict.winner) == ("A", True, None)
    assert asked() == []


@pytest.mark.parametrize("damage", [b'{"name": "x"', b"", b'{"name": "x", "verdict": "A"}\n', None])
def test_a_broken_shard_is_an_error_that_names_it(bench: Any, s3: Any, damage: bytes | None) -> None:
    bench({"a": pairs(0, 2)})
    uri, data = next(iter(shards(s3).items()))
    s3.storage.write_bytes(uri, data[: data.index(b"\n") + 1] if damage is None else damage)
    with pytest.raises(ReasrmError, match=rf"{uri} cannot be read: .*delete this object"):
        bench({"a": pairs(0, 2)}, run="two")
    s3.storage.delete([uri])
    Recording.calls.clear()
    bench({"a": pairs(0, 2)}, run="two")
    assert len(asked()) == len(data.splitlines())


def test_of_two_writers_of_one_shard_the_first_counts(s3: Any, tmp_path: Path) -> None:
    stores = [VerdictStore(output_of(s3, tmp_path, "one"), "key", ["x.0", "y.0"]) for _ in range(2)]
    for number, store in enumerate(stores):
        with store.writing():
            store.put(Answer(name=name, text=f"{name} by {number}") for name in ("y.0", "x.0"))
        store.settle()
    assert [store["x.0"].text for store in stores] == ["x.0 by 0"] * 2


def test_processes_that_answered_the_same_questions_differently_agree_in_the_end(s3: Any, tmp_path: Path) -> None:
    names = [f"{letter}.0" for letter in "abcdef"]
    ways = [["abc", "def"], ["ab", "cdef"], ["a", "bcd", "ef"]]
    stores = [VerdictStore(output_of(s3, tmp_path, "one"), "key", names) for _ in ways]
    for number, (store, way) in enumerate(zip(stores, ways, strict=True)):
        with store.writing():
            for letters in way:
                store.put(Answer(name=f"{letter}.0", text=f"{letter} by {number}") for letter in letters)
        store.settle()  # each sees more shards than the one before
    late = VerdictStore(output_of(s3, tmp_path, "one"), "key", names)
    late.load()
    late.settle()
    texts = [[store[name].text for name in names] for store in (*stores, late)]
    assert texts == [texts[0]] * 4
    assert texts[0] == [f"{letter} by 0" for letter in "abcdef"]


def test_shards_that_were_agreed_upon_and_are_gone_are_made_again(bench: Any, s3: Any) -> None:
    first = bench({"a": pairs(0, 4)})
    s3.storage.delete(list(shards(s3))[:1])
    assert bench({"a": pairs(0, 4)}) == first


def test_a_lost_connection_while_shards_are_written_ends_the_run_as_transient(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.adapters.storage import Storage

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # nobody listens on the discard port
    output = output_of(s3, tmp_path, "one")
    output.storage = Storage.from_env()
    store = VerdictStore(output, "key", ["x.0"])
    with pytest.raises(Transient, match="does not answer"), store.writing():
        store.put([Answer(name="x.0")])


class Counting(TransformersScorer):
    """The real scorer, which keeps what it was asked."""

    asked: ClassVar[list[str]] = []

    def score(self, conversations: Sequence[Any], on_score: OnScore | None = None) -> list[float]:
        type(self).asked += [conversation[-1].content for conversation in conversations]
        return super().score(conversations, on_score)


@pytest.fixture(scope="session")
def tiny_scorer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a random head of one output."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("scorer")
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_a_scalar_judge_scores_each_answer_once_and_both_orders_follow(
    s3: Any, tmp_path: Path, tiny_scorer: Path
) -> None:
    Counting.asked.clear()
    shared = pairs(0, 3)
    third = [pair.model_copy(update={"id": f"{pair.id}-x", "response_b": "It is unknown."}) for pair in shared]
    judge = ScoredJudge(lambda: Counting.load(tiny_scorer, 2, "fp32"), streams=False)
    sets = {"a": shared, "b": third}
    judged = judge_pairs("rm", judge, "rm-key", sets, config(votes=4, temperature=1), output_of(s3, tmp_path, "one"))
    assert sorted(Counting.asked) == sorted(
        [pair.response_a for pair in shared] + [pair.response_b for pair in shared] + ["It is unknown."] * 3
    )
    for rows in judged.values():
        for straight, swapped in zip(rows[::2], rows[1::2], strict=True):
            assert straight.scores is not None
            assert swapped.scores == straight.scores[::-1]
            assert straight.scores[0] != straight.scores[1]
            assert straight.verdict.winner == ("A" if straight.scores[0] > straight.scores[1] else "B")
            assert straight.right == swapped.right
            assert min(straight.num_prompt_tokens, swapped.num_prompt_tokens) > 10
    Counting.asked.clear()
    again = ScoredJudge(lambda: Counting.load(tiny_scorer, 2, "fp32"), streams=False)
    assert judge_pairs("rm", again, "rm-key", sets, config(), output_of(s3, tmp_path, "two")) == judged
    assert Counting.asked == []
