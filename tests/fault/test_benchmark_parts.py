"""The benchmark in parts: whatever becomes of the parts, the stage ends with the artifact that it makes alone."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.adapters.part import run_part
from components.adapters.stage import run_stage
from components.adapters.storage import Storage
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest

NUM_QUESTIONS = 12
"""Six held-out pairs in two orders."""


@dataclass
class History:
    """One work with an artifact root of its own, done on several machines."""

    s3: Any
    name: str
    inputs: dict[str, Manifest]
    config: dict[str, Any]
    directory: Path
    monkeypatch: pytest.MonkeyPatch

    def part(self, part: str, machine: str = "the disk of the parts") -> str:
        return self._do(machine, run_part, part)  # type: ignore[no-any-return]

    def stage(self) -> Manifest:
        return self._do("the disk of the stage", run_stage).manifest  # type: ignore[no-any-return]

    def _do(self, machine: str, work: Callable[..., Any], *part: str) -> Any:
        self.monkeypatch.setenv("REASRM_WORKDIR", str(self.directory / self.name / machine))
        names = {"artifact_root": f"{self.s3.prefix}/{self.name}", "experiment": "e", "run_id": self.name}
        return work("benchmark", self.config, self.inputs, *part, **names)

    def shards(self) -> dict[str, bytes]:
        """The verdict store: what each judge has answered, shard by shard."""
        prefix = f"{self.s3.prefix}/{self.name}/benchmark/verdicts/"
        return {
            info.uri.removeprefix(prefix): self.s3.storage.read_bytes(info.uri) for info in self.s3.storage.list(prefix)
        }


@pytest.fixture
def make(
    s3: Any,
    rl_pairs: Manifest,
    tiny_artifact: Manifest,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., History]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(
        Storage, "from_env", lambda: s3.storage
    )  # a connection of its own takes each a part of a second
    config = {
        "base_model": str(tiny_model), "models": ["grpo"], "attacks": [], "max_tokens": 8, "precision": "fp32",
        "batch_size": 2, "shard_size": 2, "num_resamples": 100,
    }  # fmt: skip
    inputs = {"pairs": rl_pairs, "sft": tiny_artifact, "grpo": tiny_artifact}
    return lambda name, **more: History(s3, name, inputs, config | more, tmp_path, monkeypatch)


def rows(shards: dict[str, bytes]) -> list[bytes]:
    return sorted(row for data in shards.values() for row in data.splitlines())


def content(manifest: Manifest) -> dict[str, Any]:
    """Return all that an artifact is, but for where it lies: equal ones are equal to the byte."""
    return manifest.model_dump(exclude={"uri"})


def judge(server: Any) -> dict[str, Any]:
    calls = {
        "concurrency": 2,
        "attempts": 1,
        "max_wait_seconds": 0.01,
        "breaker_rows": 2,
        "requests_per_minute": 10_000,
    }
    return {"kind": "openai", "name": "oracle", "base_url": server.url, "model": "m", "calls": calls}


def opinion(server: Any, call: Any) -> Any:
    """Answer as a function of the prompt."""
    letter = "AB"[hashlib.sha256(call.prompt.encode()).digest()[0] % 2]
    return server.answer(body=server.completion(f"so</eval>\n<answer>[[{letter}]]</answer>"))


def test_parts_answer_the_questions_in_the_slices_of_the_whole(make: Any, teacher_server: Any) -> None:
    teacher_server.script = lambda call: opinion(teacher_server, call)
    alone = make("alone", judges=[judge(teacher_server)])
    expected = alone.stage()
    assert len(teacher_server.calls) == NUM_QUESTIONS

    split = make("split", judges=[judge(teacher_server)])
    said = [
        split.part(part) for part in ("1/4", "2/4", "3/4")
    ]  # not in threads: transformers loads one model at a time
    assert said == ["8 answers of 2 judges", "8 answers of 2 judges", "4 answers of 2 judges"]
    assert split.part("1/4", "the double of its pod") == "0 answers of 2 judges"
    assert split.part("4/4") == "4 answers of 2 judges"
    assert len(teacher_server.calls) == 2 * NUM_QUESTIONS

    one, other = alone.shards(), split.shards()
    assert rows(one) == rows(other)
    assert len(rows(other)) == 2 * NUM_QUESTIONS
    batched = {path for path, data in one.items() if b"so</eval>" not in data}
    assert batched == {path for path, data in other.items() if b"so</eval>" not in data}, (
        "batches are those of the whole"
    )

    assert content(split.stage()) == content(expected)
    assert split.shards() == other, "the stage asked nothing"
    assert len(teacher_server.calls) == 2 * NUM_QUESTIONS
    assert split.part("2/4") == "the stage is done already"


def test_a_part_that_fails_or_never_runs_is_made_up_for(make: Any, teacher_server: Any) -> None:
    prompts: list[str] = []
    down = False

    def script(call: Any) -> Any:
        if call.prompt not in prompts:
            prompts.append(call.prompt)
        if down:
            return teacher_server.answer(status=503, body=b"down")
        if call.prompt == prompts[0]:
            return teacher_server.answer(status=400, body=b"cannot be done")
        return opinion(teacher_server, call)

    teacher_server.script = script
    settings = {"judges": [judge(teacher_server)], "max_unanswered": 0.2}
    expected = make("alone", **settings).stage()
    num_alone = len(teacher_server.calls)

    split = make("split", **settings)
    assert split.part("1/3") == "8 answers of 2 judges"
    in_part = [call.prompt for call in teacher_server.calls[num_alone:]]
    assert prompts[0] in in_part
    assert len(rows(split.shards())) == 7, "what gets no answer is left to the stage"
    down = True
    with pytest.raises(Transient):
        split.part("2/3")
    assert len(rows(split.shards())) == 7 + 4, "what another judge answered is kept"
    down, num_calls = False, len(teacher_server.calls)
    assert content(split.stage()) == content(expected)
    in_stage = [call.prompt for call in teacher_server.calls[num_calls:]]
    assert set(in_part) & set(in_stage) == {prompts[0]}, "and is asked once more"
    assert len(in_stage) == NUM_QUESTIONS - len(set(in_part)) + 1

    # Another model behind the endpoint refuses everything; what the run's own model said is still known.
    split.config["judges"][0]["revision"] = "another"
    teacher_server.script = lambda call: teacher_server.answer(status=400, body=b"cannot be done")
    assert split.part("1/3") == "0 answers of 2 judges", "too many without an answer: for the stage to judge"
    with pytest.raises(InvalidInput, match="oracle gives no answer to over 2 of 12 questions"):
        split.stage()
