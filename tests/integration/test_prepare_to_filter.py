"""The sample pairs through prepare, traces (played back) and filter, over a real S3 server."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from components.adapters.stage import StageResult, run_stage
from components.core.errors import InvalidInput
from components.core.manifest import Manifest, describe, hash_file
from components.core.records import read_models, write_jsonl
from components.core.schema import Example, PreferencePair, Trace
from components.core.verdict import grammar_faults, parse_verdict

SAMPLES = Path(__file__).parents[2] / "samples"
PAIRS, TRACES = SAMPLES / "pairs.jsonl.gz", SAMPLES / "traces.jsonl.gz"


@pytest.fixture
def stage(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "work"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def run(name: str, config: dict[str, Any], **inputs: Manifest) -> StageResult:
        return run_stage(name, config, inputs, artifact_root=f"{s3.prefix}/art", experiment="e", run_id="r")

    return run


def prepare(stage: Any, source: str = str(PAIRS), **settings: Any) -> StageResult:
    return stage("prepare", {"sources": [source], "distil_share": 0.3, "heldout_share": 0.1} | settings)  # type: ignore[no-any-return]


def test_samples_become_examples_that_are_all_right(stage: Any, s3: Any, tmp_path: Path) -> None:
    pairs = prepare(stage).manifest
    traces = stage("traces", {"teacher": {"kind": "recorded", "uri": str(TRACES)}}, pairs=pairs).manifest
    examples = stage("filter", {"min_yield": 0.7}, pairs=pairs, traces=traces).manifest

    assert sum(pairs.statistics["pairs"].values()) == 972  # type: ignore[union-attr, arg-type]
    assert pairs.statistics["sources"][0]["rows"] == 972  # type: ignore[index, call-overload]
    assert 0.35 < pairs.statistics["longer_is_better"] < 0.65  # type: ignore[operator]

    distil = read_models(s3.storage.fetch(pairs, tmp_path / "p") / "distil.jsonl", PreferencePair)
    told = read_models(s3.storage.fetch(traces, tmp_path / "t") / "traces.jsonl", Trace)
    folder = s3.storage.fetch(examples, tmp_path / "e")
    learnt = read_models(folder / "sft.jsonl", Example)
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]

    assert [trace.key for trace in told] == [pair.key for pair in distil]
    assert len(learnt) + len(rejected) == len(told)
    labels = {pair.key: pair.label for pair in distil}
    for example in learnt:
        assert parse_verdict(example.completion[0].content).winner == example.label == labels[example.key]
        assert grammar_faults(example.completion[0].content, "rubric") == []
    assert 0.75 < examples.statistics["yield"] < 0.95  # type: ignore[operator]
    assert examples.statistics["verbatim_quotes"] > 0.9  # type: ignore[operator]
    assert {row["key"] for row in rejected}.isdisjoint(example.key for example in learnt)
    assert all(row["dropped_by"] == row["reasons"][0]["rule"] for row in rejected)
    report = (folder / "report.html").read_text("utf-8")
    assert f"{len(learnt)}</b>" in report
    assert "no benchmarks given" in report
    assert Counter(label for label in labels.values()).total() == traces.statistics["pairs"]


def test_without_distillation_no_teacher_is_asked_and_the_base_model_is_handed_on(
    stage: Any, s3: Any, tmp_path: Path, tiny_model: Path
) -> None:
    pairs = prepare(stage, distil_share=0).manifest
    traces = stage("traces", {"teacher": []}, pairs=pairs)
    examples = stage("filter", {}, pairs=pairs, traces=traces.manifest).manifest
    assert pairs.statistics["pairs"]["distil"] == 0  # type: ignore[index, call-overload]
    assert traces.manifest.statistics["summary"] == "nothing to distil"
    assert (s3.storage.fetch(examples, tmp_path / "e") / "sft.jsonl").read_bytes() == b""
    model = stage("sft", {"base_model": str(tiny_model), "epochs": 0}, examples=examples).manifest
    handed = {entry.path: entry.sha256 for entry in model.files}
    assert handed["model/model.safetensors"] == hash_file(tiny_model / "model.safetensors")
    assert {"model/config.json", "model/tokenizer.json", "model/chat_template.jinja", "metrics.jsonl"} <= set(handed)
    with pytest.raises(InvalidInput, match="teacher"):
        stage("traces", {"teacher": []}, pairs=prepare(stage).manifest)


def test_doing_it_again_is_reused_and_gives_the_same_manifest(stage: Any) -> None:
    first, again = prepare(stage), prepare(stage)
    assert (first.reused, again.reused) == (False, True)
    assert first.manifest == again.manifest


def test_a_source_on_s3_counts_by_its_content(stage: Any, s3: Any) -> None:
    uri = f"{s3.prefix}/data/pairs.jsonl.gz"
    s3.storage.upload(PAIRS, uri)
    first = prepare(stage, uri)
    assert first.manifest.statistics["sources"][0]["rows"] == 972  # type: ignore[index, call-overload]
    assert prepare(stage, uri).reused
    s3.storage.write_bytes(uri, _fewer())
    changed = prepare(stage, uri)
    assert not changed.reused
    assert changed.manifest.statistics["rows"] == 500


def _fewer() -> bytes:
    return gzip.compress(b"\n".join(gzip.decompress(PAIRS.read_bytes()).split(b"\n")[:500]))


def test_a_missing_source_is_named(stage: Any, s3: Any) -> None:
    with pytest.raises(InvalidInput, match=r"no object s3://.*/nothing\.jsonl at http"):
        prepare(stage, f"{s3.prefix}/nothing.jsonl")


def test_a_recording_without_a_pair_s_trace_fails_that_row_alone(stage: Any, s3: Any, tmp_path: Path) -> None:
    pairs = prepare(stage).manifest
    distil = read_models(s3.storage.fetch(pairs, tmp_path / "p") / "distil.jsonl", PreferencePair)
    lines = gzip.decompress(TRACES.read_bytes()).splitlines(keepends=True)
    short = tmp_path / "short.jsonl"
    short.write_bytes(b"".join(line for line in lines if json.loads(line)["key"] != distil[0].key))
    uri = f"{s3.prefix}/data/short.jsonl"
    s3.storage.upload(short, uri)
    manifest = stage("traces", {"teacher": {"kind": "recorded", "uri": uri}}, pairs=pairs).manifest
    assert manifest.statistics["failures"] == {"missing": 1}
    failures = (s3.storage.fetch(manifest, tmp_path / "t") / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in failures] == [distil[0].key]


def test_a_teacher_that_is_too_often_wrong_stops_the_run_with_the_waterfall(stage: Any, tmp_path: Path) -> None:
    pairs = prepare(stage).manifest
    teacher = {"kind": "recorded", "uri": str(TRACES)}
    traces = stage("traces", {"teacher": teacher}, pairs=pairs).manifest
    with pytest.raises(InvalidInput, match=r"under min_yield=0.99; dropped were: .* wrong"):
        stage("filter", {"min_yield": 0.99}, pairs=pairs, traces=traces)
    assert not stage("filter", {}, pairs=pairs, traces=traces).reused
    assert stage("filter", {}, pairs=pairs, traces=traces).reused
    with pytest.raises(InvalidInput, match=r"under min_yield=0\.98"):  # finished work is held to it too
        stage("filter", {"min_yield": 0.98}, pairs=pairs, traces=traces)
    with pytest.raises(InvalidInput, match="under min_examples=5000"):
        stage("filter", {"min_examples": 5000}, pairs=pairs, traces=traces)
    with pytest.raises(InvalidInput, match="under min_yield"):
        stage("filter", {"grammar": "think"}, pairs=pairs, traces=traces)


def attempts_of(pairs: list[PreferencePair]) -> list[Trace]:
    """Four judgments of each pair by a model that gets the first four right 4, 0, 2 and 1 times, the rest always."""
    rights = dict(zip((pair.key for pair in pairs), (4, 0, 2, 1), strict=False))
    other = {"A": "B", "B": "A"}
    return [
        Trace(
            key=pair.key,
            pair_id=pair.id,
            swapped=pair.swapped,
            teacher="model",
            text=f"<answer>[[{pair.label if sample < rights.get(pair.key, 4) else other[pair.label]}]]</answer>",
            finish_reason="stop",
            prompt_tokens=1,
            completion_tokens=1,
            sample=sample,
        )
        for pair in pairs
        for sample in range(4)
    ]


@pytest.mark.parametrize("given", ["s3", "file", "input"])
def test_attempts_choose_the_pairs_for_reinforcement(stage: Any, s3: Any, tmp_path: Path, given: str) -> None:
    pairs = prepare(stage).manifest
    traces = stage("traces", {"teacher": {"kind": "recorded", "uri": str(TRACES)}}, pairs=pairs).manifest
    rl = read_models(s3.storage.fetch(pairs, tmp_path / "p") / "rl.jsonl", PreferencePair)
    made = tmp_path / "made"
    made.mkdir()
    write_jsonl(made / "traces.jsonl", attempts_of(rl))
    uri, inputs, config = f"{s3.prefix}/data/attempts.jsonl", {"pairs": pairs, "traces": traces}, {}
    if given == "input":
        uri = f"{s3.prefix}/art/traces/attempts"
        inputs["attempts"] = Manifest(
            kind="traces",
            stage="traces",
            uri=uri,
            run_key="0" * 64,
            code_version="0",
            config={},
            files=describe(made),
        )
        s3.storage.commit(inputs["attempts"], made)
    elif given == "s3":
        s3.storage.upload(made / "traces.jsonl", uri)
        config = {"attempts": uri}
    else:
        config = {"attempts": str(made / "traces.jsonl")}
    examples = stage("filter", config, **inputs).manifest
    folder = s3.storage.fetch(examples, tmp_path / "e")
    kept = read_models(folder / "rl.jsonl", PreferencePair)
    dropped = [json.loads(line) for line in (folder / "rl_rejected.jsonl").read_text().splitlines()]
    assert [(pair.id, pair.difficulty) for pair in kept] == [(rl[2].id, 0.5), (rl[3].id, 0.75)]
    assert Counter(row["reason"] for row in dropped) == {"too easy": len(rl) - 3, "too hard": 1}
    assert examples.statistics["rl"]["kept"] == 2  # type: ignore[index, call-overload]
    assert "Difficulty of the pairs" in (folder / "report.html").read_text("utf-8")
    assert stage("filter", config, **inputs).reused


def test_attempts_may_not_be_given_twice(stage: Any, s3: Any, tmp_path: Path) -> None:
    pairs = prepare(stage).manifest
    traces = stage("traces", {"teacher": {"kind": "recorded", "uri": str(TRACES)}}, pairs=pairs).manifest
    path = tmp_path / "attempts.jsonl"
    path.write_text("{}\n")
    with pytest.raises(InvalidInput, match="given twice"):
        stage("filter", {"attempts": str(path)}, pairs=pairs, traces=traces, attempts=traces)
    with pytest.raises(InvalidInput, match=r"attempts\.jsonl:1 \(byte 0\) is no trace: key: Field required"):
        stage("filter", {"attempts": str(path)}, pairs=pairs, traces=traces)


def test_the_same_traces_give_the_same_bytes(stage: Any, s3: Any, tmp_path: Path) -> None:
    pairs = prepare(stage).manifest
    traces = stage("traces", {"teacher": {"kind": "recorded", "uri": str(TRACES)}}, pairs=pairs).manifest
    first = stage("filter", {}, pairs=pairs, traces=traces).manifest
    again = stage("filter", {"max_run_words": 61}, pairs=pairs, traces=traces).manifest
    digests = {entry.path: entry.sha256 for entry in first.files}
    assert set(digests) == {"sft.jsonl", "rejected.jsonl", "report.html"}
    for entry in again.files:
        assert entry.path == "report.html" or entry.sha256 == digests[entry.path]


@pytest.mark.slow
def test_grpo_takes_the_pairs_that_the_filter_chose(
    stage_runner: Any, s3: Any, tiny_model: Path, tmp_path: Path
) -> None:
    def committed(name: str, kind: str) -> Manifest:
        made = Manifest(
            kind=kind,
            stage=name,
            uri=f"{s3.prefix}/given/{name}",
            run_key="0" * 64,
            code_version="0",
            config={},
            files=describe(tmp_path / name),
        )
        s3.storage.commit(made, tmp_path / name)
        return made

    pairs = [PreferencePair.model_validate_json(line) for line in gzip.decompress(PAIRS.read_bytes()).splitlines()[:6]]
    for name, rows in (("pairs", pairs), ("chosen", pairs[:3])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rl.jsonl", rows)
    (tmp_path / "unchosen").mkdir()
    write_jsonl(tmp_path / "unchosen" / "sft.jsonl", [])
    shutil.copytree(tiny_model, tmp_path / "tiny" / "model")
    inputs = {"pairs": committed("pairs", "pairs"), "sft": committed("tiny", "model")}
    config = {
        "steps": 1, "prompts_per_step": 2, "num_generations": 2, "micro_batch_size": 2, "max_completion_tokens": 8,
        "precision": "fp32",
    }  # fmt: skip
    for examples, count in (("unchosen", 6), ("chosen", 3)):
        given = inputs | {"examples": committed(examples, "examples")}
        made = stage_runner(examples).start("grpo", config, given).finish()
        assert made.statistics["num_prompts"] == count
