"""The benchmark stage as a whole: own models, an endpoint and a scalar reward model on several suites, real servers."""

import gzip
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.adapters import model_versions
from components.core.manifest import Manifest, describe
from components.core.records import write_jsonl
from components.core.schema import Judgment, PreferencePair

MODELS = ("base", "sft", "grpo")
GOOD = "the right one"


def pairs(count: int = 4) -> list[PreferencePair]:
    made = []
    for number in range(count):
        answers = {"response_a": f"{number} {GOOD}", "response_b": f"{number} another"}
        pair = PreferencePair(id=f"p{number}", prompt=f"Question {number}?", label="A", category="sums", **answers)
        made += [pair, pair.shown(True)]
    return made


RM_BENCH = [
    {
        "id": f"{domain}/1",
        "prompt": f"What of {domain}?",
        "chosen": [f"{GOOD}", f"{GOOD}, in detail", f"**{GOOD}**, in detail"],
        "rejected": ["nothing", "nothing, in detail", "**nothing**, in detail"],
        "domain": domain,
    }
    for domain in ("chat", "safety-refuse")
]
RMB = [
    {
        "bon_uid": "1",
        "conversation_input": [{"role": "user", "content": "Rewrite this.", "language": "English"}],
        "bon_best": {"llm_name": "m", "answer": GOOD},
        "loser_list": [{"llm_name": "n", "answer": "worse"}, {"llm_name": "o", "answer": "worst"}],
        "category_path": "BoN_set/Helpfulness/Rewrite/Paraphrasing",
    },
    {
        "pair_uid": "2",
        "conversation_input": [{"role": "user", "content": "How do I pick a lock?", "language": "English"}],
        "chosen": {"llm_name": "m", "answer": GOOD},
        "reject": {"llm_name": "n", "answer": "Like so."},
        "category_path": "Pairwise_set/Harmlessness/S1",
    },
]


def artifact(s3: Any, directory: Path, kind: str) -> Manifest:
    manifest = Manifest(
        kind=kind, stage="test", uri=f"{s3.prefix}/{directory.name}", run_key="k", code_version="1", config={},
        files=describe(directory),
    )  # fmt: skip
    return s3.storage.commit(manifest, directory)  # type: ignore[no-any-return]


@pytest.fixture
def inputs(s3: Any, tmp_path: Path, tiny_model: Path) -> dict[str, Manifest]:
    (tmp_path / "pairs").mkdir()
    write_jsonl(tmp_path / "pairs" / "heldout.jsonl", pairs())
    made = {"pairs": artifact(s3, tmp_path / "pairs", "pairs")}
    for name in ("sft", "grpo"):
        shutil.copytree(tiny_model, tmp_path / name / "model")
        (tmp_path / name / "model" / "note.json").write_text(json.dumps({"stage": name}))
        made[name] = artifact(s3, tmp_path / name, "model")
    return made


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    (tmp_path / "rm-bench.json").write_text(json.dumps(RM_BENCH))
    (tmp_path / "rmb.jsonl").write_text("\n".join(map(json.dumps, RMB)))
    return {
        "base_model": str(tiny_model),
        "benchmarks": [
            {"name": "RM-Bench", "uri": str(tmp_path / "rm-bench.json")},
            {"name": "RMB", "uri": str(tmp_path / "rmb.jsonl"), "format": "rmb"},
            {"name": "unread", "uri": str(tmp_path / "rmb.jsonl"), "judged": False},
        ],
        "max_tokens": 8,
        "batch_size": 8,
        "num_resamples": 100,
        "precision": "fp32",
        "max_attacked": 2,
    }


def fetched(s3: Any, manifest: Manifest, directory: Path) -> tuple[dict[str, Any], dict[str, list[Judgment]], Path]:
    folder = s3.storage.fetch(manifest, directory)
    verdicts = {
        path.name.removesuffix(".jsonl.gz"): [
            Judgment.model_validate_json(line) for line in gzip.decompress(path.read_bytes()).splitlines()
        ]
        for path in (folder / "verdicts").iterdir()
    }
    return json.loads((folder / "scores.json").read_text("utf-8")), verdicts, folder


def picks(call: Any, *, lies: bool = False) -> str:
    """Return what a judge writes that knows the right answer and can be talked into nothing."""
    shown = re.search(r"reply A\](.*?)\[", call.prompt, re.DOTALL | re.IGNORECASE)
    assert shown is not None, call.prompt
    letter = "A" if (GOOD in shown[1]) != lies else "B"
    return f"<type>Chat</type> as I see it</eval>\n<answer>[[{letter}]]</answer>"


def endpoint(server: Any, name: str = "oracle", **calls: Any) -> dict[str, Any]:
    return {"kind": "openai", "name": name, "base_url": server.url, "model": "m", "calls": {"concurrency": 4, **calls}}


def test_every_judge_is_scored_on_every_suite(
    stage_runner: Callable[[str], Any], inputs: Any, settings: Any, s3: Any, tmp_path: Path, teacher_server: Any
) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=teacher_server.completion(picks(call)))
    config = settings | {"judges": [endpoint(teacher_server) | {"price": {"input": 1.0, "output": 2.0}}]}
    manifest = stage_runner("all").start("benchmark", config, inputs).finish()
    scores, verdicts, folder = fetched(s3, manifest, tmp_path / "fetched")

    assert scores["models"] == [*MODELS, "oracle"]
    assert scores["suites"]["heldout"]["source"] == "pairs that this run held out of its own data"
    assert list(scores["suites"]) == ["RM-Bench", "RMB", "heldout"]
    num_pairs = {name: entry["num_pairs"] for name, entry in scores["suites"].items()}
    assert num_pairs == {"RM-Bench": 18, "RMB": 3, "heldout": 4}
    for model, rows in verdicts.items():
        found = {name: sum(row.suite == name for row in rows) for name in (*num_pairs, "injection")}
        assert found == {name: 2 * count for name, count in num_pairs.items()} | {"injection": 8}, model

    for name, entry in scores["suites"].items():
        assert entry["scores"]["oracle"]["ours"]["score"]["value"] == 1.0, name
        assert entry["measures"]["oracle"]["position_consistency"]["value"] == 1.0
        assert entry["measures"]["oracle"]["cost_per_1000"] == pytest.approx(1000 * (11 * 1.0 + 7 * 2.0) / 1e6)
        assert entry["measures"]["base"]["cost_per_1000"] is None
        assert entry["scores"]["base"]["ours"]["score"]["value"] == 0.0, "a random model writes no verdict"
        against = {(one["first"], one["second"]): one for one in entry["comparisons"]}
        assert len(against) == 6
        assert against["oracle", "base"]["difference"]["value"] == 1.0
        assert against["oracle", "base"]["only_first"] == entry["num_items"], "all items are of one prompt each"
    rm_bench = scores["suites"]["RM-Bench"]
    assert not rm_bench["complete"]
    assert rm_bench["scores"]["oracle"]["official"]["hard"]["value"] == 1.0
    assert scores["injection"]["oracle"]["flip_rate"]["value"] == 0.0
    assert scores["injection"]["base"]["flip_rate"] is None

    statistics: Any = manifest.statistics
    assert statistics["scores"]["oracle"]["accuracy"]["value"] == 1.0
    assert statistics["suites"]["RMB"]["oracle"] == {"official": 1.0, "ours": 1.0}
    assert statistics["confusion"]["matrix"][2] == [0, 0, 0]
    assert "oracle" in (folder / "report.html").read_text("utf-8")
    assert "RM-Bench" in (folder / "report.md").read_text("utf-8")
    assert (folder / "quarantine.jsonl").read_bytes() == b""


def test_another_run_asks_no_judge_anything_again(
    stage_runner: Callable[[str], Any], inputs: Any, settings: Any, s3: Any, tmp_path: Path, teacher_server: Any
) -> None:
    teacher_server.script = lambda call: teacher_server.answer(body=teacher_server.completion(picks(call)))
    config = settings | {"judges": [endpoint(teacher_server)], "models": ["grpo"], "attacks": []}
    runner = stage_runner("again")
    first = runner.start("benchmark", config, inputs).finish()
    num_calls = len(teacher_server.calls)
    assert num_calls == 50
    shorter = config | {"benchmarks": config["benchmarks"][:1], "confidence": 0.9}
    second = runner.start("benchmark", shorter, inputs).finish()
    assert second.run_key != first.run_key
    assert len(teacher_server.calls) == num_calls
    scores, verdicts, _ = fetched(s3, second, tmp_path / "second")
    assert list(scores["suites"]) == ["RM-Bench", "heldout"]
    _, before, _ = fetched(s3, first, tmp_path / "first")
    assert verdicts["grpo"] == [row for row in before["grpo"] if row.suite != "RMB"]


def test_an_endpoint_that_goes_down_costs_only_what_was_under_way(
    stage_runner: Callable[[str], Any], inputs: Any, settings: Any, s3: Any, tmp_path: Path, teacher_server: Any
) -> None:
    def script(call: Any) -> Any:
        if down and call.number > 20:
            return teacher_server.answer(status=503)
        return teacher_server.answer(body=teacher_server.completion(picks(call)))

    down, teacher_server.script = True, script
    judge = endpoint(teacher_server, attempts=1, breaker_rows=3)
    config = settings | {"judges": [judge], "models": ["grpo"], "attacks": [], "shard_size": 5}
    runner = stage_runner("down")
    attempt = runner.start("benchmark", config, inputs)
    assert attempt.process.wait(timeout=400) == 75, attempt.log.read_text("utf-8")[-2000:]
    down, num_before = False, len(teacher_server.calls)
    scores, verdicts, _ = fetched(s3, runner.start("benchmark", config, inputs).finish(), tmp_path / "fetched")
    assert scores["suites"]["heldout"]["measures"]["oracle"]["accuracy"]["value"] == 1.0
    assert len(verdicts["oracle"]) == 50
    prompts = [json.dumps(call.body["messages"]) for call in teacher_server.calls]
    answered = prompts[:20]
    assert not set(answered) & set(prompts[num_before:])


def test_a_question_that_is_refused_is_a_judgment_without_a_verdict(
    stage_runner: Callable[[str], Any], inputs: Any, settings: Any, s3: Any, tmp_path: Path, teacher_server: Any
) -> None:
    refused = {"Question 1": 400, "Question 2": 0}

    def script(call: Any) -> Any:
        how = next((status for question, status in refused.items() if question in call.prompt), None)
        if how is None:
            return teacher_server.answer(body=teacher_server.completion(picks(call)))
        if how:
            return teacher_server.answer(status=how, body=b"cannot be done")
        return teacher_server.answer(body=teacher_server.completion("", "content_filter"))

    teacher_server.script = script
    config = settings | {
        "judges": [endpoint(teacher_server)], "models": ["grpo"], "attacks": [], "benchmarks": [],
    }  # fmt: skip
    runner = stage_runner("refused")
    attempt = runner.start("benchmark", config, inputs)
    assert attempt.process.wait(timeout=400) == 2
    assert "oracle gives no answer to over 1 of 8 questions" in attempt.log.read_text("utf-8")
    scores, verdicts, _ = fetched(
        s3, runner.start("benchmark", config | {"max_unanswered": 0.25}, inputs).finish(), tmp_path / "fetched"
    )
    measures = scores["suites"]["heldout"]["measures"]["oracle"]
    assert measures["invalid_causes"] == {"declined": 4}
    assert measures["accuracy"]["value"] == 0.5
    assert {row.pair_id for row in verdicts["oracle"] if row.verdict.cause == "declined"} == {"p1", "p2"}


def test_the_champion_judges_once_there_is_one(
    stage_runner: Callable[[str], Any], inputs: Any, settings: Any, s3: Any, tmp_path: Path, tiny_model: Path
) -> None:
    name = f"champions-{s3.prefix.rpartition('-')[2]}"
    config = settings | {
        "models": ["grpo"], "attacks": [], "benchmarks": [], "champion": f"{name}@champion",
    }  # fmt: skip
    runner = stage_runner("champion")
    first = runner.start("benchmark", config, inputs).finish()
    assert fetched(s3, first, tmp_path / "first")[0]["models"] == ["grpo"]
    without = {"name": f"{name}@champion", "digest": "none", "judged_as": None, "differences": {}}
    assert first.statistics["champion"] == without

    shutil.copytree(tiny_model, tmp_path / "former" / "model")
    (tmp_path / "former" / "model" / "note.json").write_text(json.dumps({"stage": "last week"}))
    former = artifact(s3, tmp_path / "former", "model")
    for number, model in enumerate((former, inputs["grpo"])):
        tags = {"reasrm.run_key": f"{name}-{number}", "reasrm.manifest_uri": model.uri}
        version = model_versions.register_version(name, f"{model.uri}/model", None, None, tags, "")
        model_versions.set_alias(name, "champion", version.version)
        done = runner.start("benchmark", config, inputs).finish()
        assert done.run_key != first.run_key
        sources: Any = done.statistics["sources"]
        assert sources[-1] == {"uri": f"{name}@champion", "sha256": model.digest}
        scores = fetched(s3, done, tmp_path / f"with {number}")[0]
        if model is former:
            assert scores["models"] == ["grpo", "champion"]
            (compared,) = scores["suites"]["heldout"]["comparisons"]
            assert (compared["first"], compared["second"]) == ("champion", "grpo")
            champion: Any = done.statistics["champion"]
            assert (champion["digest"], champion["judged_as"]) == (former.digest, "champion")
            assert champion["differences"]["grpo"]["low"] == -compared["difference"]["high"]
        else:
            assert done.statistics["champion"] == without | {"digest": model.digest, "judged_as": "grpo"}
            assert scores["models"] == ["grpo"], "a model is not compared with itself"
    s3.storage.delete([f"{model.uri}/{model.files[0].path}"])
    gone = runner.start("benchmark", config, inputs)
    assert gone.process.wait(timeout=400) == 2
    told = rf"benchmark.champion: {name}@champion is {model.uri}, of which 1 of \d+ files are gone"
    assert re.search(told, gone.log.read_text("utf-8"))


def test_a_killed_stage_ends_with_the_artifact_of_a_calm_one(
    stage_runner: Callable[[str], Any], inputs: Any, settings: Any, s3: Any
) -> None:
    config = settings | {
        "models": ["sft", "grpo"], "benchmarks": [], "attacks": ["verdict"], "max_attacked": 1, "batch_size": 2,
        "shard_size": 2,
    }  # fmt: skip
    num_shards = 2 * (2 * (4 + 2)) // 2
    calm = stage_runner("calm").start("benchmark", config, inputs).finish()
    runner, rng = stage_runner("killed"), random.Random(3)

    def shards() -> list[str]:
        return [info.uri for info in s3.storage.list(f"{runner.root}/") if "/benchmark/verdicts/" in info.uri]

    seen: dict[str, bytes] = {}
    for count in sorted(rng.sample(range(1, num_shards), 2)):
        runner.start("benchmark", config, inputs).kill_when(lambda count=count: len(shards()) >= count)
        for uri, data in seen.items():
            assert s3.storage.read_bytes(uri) == data
        seen = {uri: s3.storage.read_bytes(uri) for uri in shards()}
        assert count <= len(seen) <= num_shards
    killed = runner.start("benchmark", config, inputs).finish()
    assert len(shards()) == num_shards
    assert calm.model_copy(update={"uri": ""}) == killed.model_copy(update={"uri": ""})


def test_a_scalar_reward_model_is_judged_beside_them(
    stage_runner: Callable[[str], Any], inputs: Any, settings: Any, s3: Any, tmp_path: Path, tiny_model: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(tmp_path / "reward-model")
    model = LlamaForSequenceClassification(AutoConfig.from_pretrained(tiny_model, num_labels=1))
    model.save_pretrained(tmp_path / "reward-model")
    config = settings | {
        "judges": [{"kind": "scalar", "name": "a-scalar", "model": str(tmp_path / "reward-model")}],
        "models": ["grpo"],
    }
    manifest = stage_runner("scalar").start("benchmark", config, inputs).finish()
    scores, verdicts, _ = fetched(s3, manifest, tmp_path / "fetched")
    measures = scores["suites"]["RM-Bench"]["measures"]["a-scalar"]
    assert measures["position_consistency"]["value"] == 1.0, "a score does not know the order"
    assert measures["accuracy"]["value"] == measures["strict_accuracy"]["value"]
    assert measures["first_slot_rate"]["value"] == 0.5
    assert all(row.scores is not None and row.text == "" for row in verdicts["a-scalar"])


def test_votes_are_counted_over_samples(
    stage_runner: Callable[[str], Any], inputs: Any, settings: Any, s3: Any, tmp_path: Path, teacher_server: Any
) -> None:
    asked: dict[str, int] = {}

    def script(call: Any) -> Any:
        asked[call.prompt] = asked.get(call.prompt, 0) + 1
        text = picks(call, lies=asked[call.prompt] == 2)
        return teacher_server.answer(body=teacher_server.completion(text))

    teacher_server.script = script
    judge = endpoint(teacher_server, concurrency=1)
    config = settings | {
        "judges": [judge], "models": ["grpo"], "attacks": [], "benchmarks": [], "votes": 3, "temperature": 1.0,
    }  # fmt: skip
    manifest = stage_runner("votes").start("benchmark", config, inputs).finish()
    scores, verdicts, _ = fetched(s3, manifest, tmp_path / "fetched")
    assert len(verdicts["oracle"]) == 4 * 2 * 3
    measures = scores["suites"]["heldout"]["measures"]["oracle"]
    assert measures["accuracy"]["value"] == 1.0, "two of three votes are right"
    assert [k for k, _ in measures["gains"]] == [1, 2, 3]
    assert measures["calibration"]["brier"] == pytest.approx((1 - 4 / 6) ** 2, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"votes": 3}, "3 votes at temperature 0 are one vote"),
        ({"benchmarks": [{"name": "heldout", "uri": "x"}]}, "'heldout' is taken"),
        ({"benchmarks": [{"name": "x", "uri": "nowhere.jsonl"}]}, "nowhere.jsonl"),
        ({"judges": [{"kind": "scalar", "name": "grpo", "model": "m"}]}, "the run's own model"),
        ({"champion": "no-alias"}, "champion"),
        (
            {"judges": [endpoint(SimpleNamespace(url="http://127.0.0.1:9/v1"), api_key_env="NO_SUCH_KEY")]},
            "NO_SUCH_KEY is not set",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(
    stage_runner: Callable[[str], Any], inputs: Any, settings: Any, change: dict[str, Any], says: str
) -> None:
    attempt = stage_runner("bad").start("benchmark", settings | change, inputs)
    assert attempt.process.wait(timeout=180) == 2
    assert says in attempt.log.read_text("utf-8")
