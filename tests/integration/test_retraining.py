"""What runs take that follow one another, over a real S3 server and a real registry."""

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from components.adapters.model_versions import register_version, set_alias
from components.adapters.models import starting_model
from components.adapters.stage import StageResult, run_stage
from components.core.errors import InvalidInput
from components.core.manifest import Manifest, describe
from components.core.records import read_models, write_jsonl
from components.core.schema import PreferencePair
from components.prepare.before import SEEN_FILE, TRAINED_FILE
from components.prepare.config import Config
from components.prepare.sources import find_before
from pipeline.starts import pin

PAIRS = Path(__file__).parents[2] / "samples" / "pairs.jsonl.gz"
LINES = gzip.decompress(PAIRS.read_bytes()).splitlines(keepends=True)
WEEKS = (LINES[:500], LINES[500:700], LINES[700:])
PARTS = ("distil", "rl", "heldout")


@pytest.fixture
def prepare(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs the stage on all that has come in by a week."""
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "work"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def run(lines: list[bytes], **settings: Any) -> StageResult:
        uri = f"{s3.prefix}/data/pairs.jsonl"
        s3.storage.write_bytes(uri, b"".join(lines))
        config = {"sources": [uri], "distil_share": 0.3, "heldout_share": 0.1, "probe_pairs": 0, "processes": 1}
        return run_stage("prepare", config | settings, {}, artifact_root=f"{s3.prefix}/a", experiment="e", run_id="r")

    return run


@pytest.fixture
def parts(s3: Any, tmp_path: Path) -> Any:
    def read(manifest: Manifest) -> dict[str, list[PreferencePair]]:
        folder = s3.storage.fetch(manifest, tmp_path / manifest.run_key[:8])
        return {part: read_models(folder / f"{part}.jsonl", PreferencePair) for part in PARTS}

    return read


def ids(pairs: list[PreferencePair]) -> set[str]:
    return {pair.id for pair in pairs}


def test_three_weeks(prepare: Any, parts: Any, s3: Any, tmp_path: Path) -> None:
    share = 0.25
    first = prepare(WEEKS[0]).manifest
    second = prepare(WEEKS[0] + WEEKS[1], since=first.uri, replay_share=share).manifest
    third = prepare(WEEKS[0] + WEEKS[1] + WEEKS[2], since=second.uri, replay_share=share).manifest
    weeks = [{json.loads(line)["id"] for line in week} for week in WEEKS]
    held: list[bytes] = []
    trained: list[set[str]] = []
    for number, manifest in enumerate((first, second, third)):
        got = parts(manifest)
        learnt = ids(got["distil"]) | ids(got["rl"])
        held.append((tmp_path / manifest.run_key[:8] / "heldout.jsonl").read_bytes())
        trained.append(learnt)
        assert learnt.isdisjoint(ids(got["heldout"]))
        assert {p.cluster for p in got["distil"] + got["rl"]}.isdisjoint(p.cluster for p in got["heldout"])
        if number:
            assert held[number].startswith(held[number - 1]) and len(held[number]) > len(held[number - 1])
            known: set[str] = set().union(*weeks[:number])
            since = manifest.statistics["since"]
            assert len(learnt & weeks[number]) == since["new"]["distil"] + since["new"]["rl"] > 100  # type: ignore[index, call-overload]
            assert len(learnt & known) == sum(since["replayed"].values())  # type: ignore[index, union-attr, call-overload]
            assert 0.5 * share < len(learnt & known) / len(known) < 1.5 * share
            assert not manifest.statistics["nothing_new"]
    assert trained[2] & weeks[0]  # what the run before last brought is still drawn on
    assert not trained[0] & ids(parts(third)["heldout"])
    assert (tmp_path / third.run_key[:8] / "quarantine.jsonl").read_bytes().count(b"seen before") == 0
    assert third.statistics["dropped"]["seen before"] > 200  # type: ignore[index, call-overload, operator]
    sizes = [s3.storage.list(f"{made.uri}/{SEEN_FILE}")[0].size // 16 for made in (first, second, third)]
    assert sizes == [500, 700, 972]
    draws = [trained[number] & weeks[0] for number in (1, 2)]
    assert draws[0] != draws[1]


def test_nothing_new_ends_early_and_the_work_is_used_again(prepare: Any, s3: Any) -> None:
    first = prepare(WEEKS[0]).manifest
    again = prepare(WEEKS[0], since=first.uri)
    assert again.manifest.statistics["nothing_new"] is True
    assert again.manifest.statistics["summary"] == "nothing new: 0 new pairs to train on, min_new_pairs is 1"
    assert "rl.jsonl" not in {entry.path for entry in again.manifest.files}
    assert prepare(WEEKS[0], since=first.uri).reused
    few = prepare(LINES[:510], since=first.uri, min_new_pairs=50).manifest
    assert few.statistics["nothing_new"] and few.statistics["since"]["new"]["rl"] > 0  # type: ignore[index, call-overload]
    assert not prepare(LINES[:700], since=first.uri, min_new_pairs=50).manifest.statistics["nothing_new"]
    with pytest.raises(InvalidInput, match="no `prepare` artifact with pairs"):
        prepare(LINES[:700], since=few.uri)


def test_other_settings_do_not_move_what_was_held_out_or_trained_on(prepare: Any, parts: Any) -> None:
    first = prepare(WEEKS[0]).manifest
    before = parts(first)
    other = {"seed": 9, "heldout_share": 0.4, "max_heldout": 1, "max_chars": 10_000, "replay_share": 1}
    second = prepare(LINES[:700], since=first.uri, **other).manifest
    after = parts(second)
    assert after["heldout"] == before["heldout"]  # max_heldout does not cut it, and leaves no room for more
    assert ids(before["distil"] + before["rl"]) <= ids(after["distil"] + after["rl"])
    assert not ids(after["distil"] + after["rl"]) & ids(before["heldout"])


def test_near_a_held_out_prompt_nothing_is_trained_on(prepare: Any, parts: Any) -> None:
    first = prepare(WEEKS[0]).manifest
    before = parts(first)
    held, learnt = before["heldout"][0].shown(swapped=False), before["rl"][0].shown(swapped=False)

    def beside(pair: PreferencePair, name: str, **change: Any) -> bytes:
        made = pair.model_copy(update={"id": name, "response_a": f"{name} is right.", "cluster": "", **change})
        return made.model_dump_json().encode() + b"\n"

    contradicts = {"id": "turned", "label": "B" if held.label == "A" else "A", "cluster": ""}
    lines = [
        *WEEKS[0], *WEEKS[1], beside(held, "beside-held"), beside(learnt, "beside-learnt"),
        held.model_copy(update=contradicts).model_dump_json().encode() + b"\n",
    ]  # fmt: skip
    second = prepare(lines, since=first.uri, seed=3, heldout_share=0.5).manifest
    after = parts(second)
    assert "beside-held" in ids(after["heldout"])
    assert "beside-learnt" in ids(after["distil"] + after["rl"])
    assert "turned" not in ids(after["heldout"]) and held.id in ids(after["heldout"])
    name = next(pair.cluster for pair in after["heldout"] if pair.id == "beside-held")
    assert name == held.cluster  # intervals go by it


def test_a_relabelled_pair_is_not_new_and_neither_label_is_trained_on(prepare: Any, parts: Any) -> None:
    first = prepare(WEEKS[0]).manifest
    pair = parts(first)["rl"][0].shown(swapped=False)
    turned = pair.model_copy(update={"label": "B" if pair.label == "A" else "A", "id": "turned", "cluster": ""})
    lines = [*WEEKS[1], turned.model_dump_json().encode() + b"\n"]
    second = prepare(lines, since=first.uri, replay_share=1).manifest
    assert not {"turned", pair.id} & ids(parts(second)["rl"] + parts(second)["distil"])
    assert second.statistics["dropped"]["contradicting labels"] == 2  # type: ignore[index, call-overload]


def test_drift_is_found_and_can_stop_the_run(prepare: Any) -> None:
    first = prepare(WEEKS[0]).manifest
    alike = {
        shift["name"]: shift for shift in prepare(LINES, since=first.uri, max_drift=0.99).manifest.statistics["drift"]
    }  # type: ignore[index, union-attr, call-overload]
    assert set(alike) == {
        "label",
        "longer_is_better",
        "source",
        "category",
        "prompt_length",
        "answer_length",
        "relabelled",
    }
    assert not any(shift["drifted"] for shift in alike.values())  # type: ignore[index, call-overload]
    odd = []
    for line in WEEKS[1]:
        row = json.loads(line) | {"source": "a new vendor"}
        better, worse = (row["response_a"], row["response_b"])[:: 1 if row["label"] == "A" else -1]
        row |= {
            "response_a": better + " Truly, and beyond all doubt, so it is." * 40,
            "response_b": worse,
            "label": "A",
        }
        odd.append(json.dumps(row).encode() + b"\n")
    told = {shift["name"] for shift in prepare(odd, since=first.uri).manifest.statistics["drift"] if shift["drifted"]}  # type: ignore[index, union-attr, call-overload]
    assert told >= {"label", "source", "longer_is_better", "answer_length"}
    with pytest.raises(InvalidInput, match=r"farther than max_drift=0\.2: label: distance .* source: distance"):
        prepare(odd, since=first.uri, on_drift="stop")


def test_overlap_with_benchmarks_is_told_apart_for_new_rows(prepare: Any, s3: Any) -> None:
    uri = f"{s3.prefix}/data/bench.jsonl"
    rows = [json.loads(line) | {"id": f"b{n}"} for n, line in enumerate([*WEEKS[0][:3], *WEEKS[1][:5]])]
    s3.storage.write_bytes(uri, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    benchmarks = [{"name": "bench", "uri": uri, "format": "pairs"}]
    first = prepare(WEEKS[0], benchmarks=benchmarks).manifest
    second = prepare(LINES[:700], benchmarks=benchmarks, since=first.uri).manifest
    new = second.statistics["since"]["new_overlap"]["bench"]  # type: ignore[index, call-overload]
    assert 5 <= new < second.statistics["overlap"]["bench"]  # type: ignore[index, call-overload, operator]
    later = prepare(LINES[:700] + LINES[800:], benchmarks=benchmarks, since=second.uri).manifest
    assert later.statistics["since"]["new_overlap"].get("bench", 0) < new  # type: ignore[index, call-overload, union-attr]


def test_the_registry_says_where_to_go_on(prepare: Any, s3: Any, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.environment()["MLFLOW_TRACKING_URI"])
    name = f"judge-{s3.prefix[-8:]}"
    first = prepare(WEEKS[0], since=f"{name}@champion").manifest
    assert "since" not in first.statistics  # nobody is champion yet: all is new
    tags = {"reasrm.run_key": first.run_key, "reasrm.pairs_uri": first.uri}
    version = register_version(name, f"{first.uri}/model", None, None, tags, "")
    set_alias(name, "champion", version.version)
    for reference in (f"{name}@champion", f"models:/{name}@champion", f"{name}/1", name, first.uri):
        settings = Config(sources=("nowhere",), since=reference)  # type: ignore[arg-type]
        found = find_before(settings, s3.storage)
        assert found is not None and found.digest == first.digest
        assert "since" not in settings.decisive()  # the artifact decides, not what it is called
    stages = {"prepare_config": f'{{"since": "{name}@champion"}}', "sft_config": f'{{"warm_start": "{name}@other"}}'}
    parameters, starts = pin(stages)
    assert starts == {"since": first.uri, "warm_start": ""}
    assert json.loads(parameters["prepare_config"]) == {"since": first.uri}
    bare = register_version(name, "s3://b/model", None, None, {"reasrm.run_key": "other"}, "")
    with pytest.raises(InvalidInput, match=r"version 2, which has no tag reasrm\.pairs_uri"):
        find_before(Config(sources=("nowhere",), since=f"{name}/{bare.version}"), s3.storage)  # type: ignore[arg-type]


def test_a_warm_start_is_from_the_champion_s_artifact_or_else_from_the_base(
    s3: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "work"))
    name, base = f"judge-{s3.prefix[-8:]}", str(tiny_model)
    assert starting_model(base, "", s3.storage) == starting_model(base, f"{name}@champion", s3.storage) == base
    server = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # a uri needs no registry
    (tmp_path / "none").mkdir()
    write_jsonl(tmp_path / "none" / "sft.jsonl", [])
    examples = Manifest(
        kind="examples",
        stage="filter",
        uri=f"{s3.prefix}/given/none",
        run_key="0" * 64,
        code_version="0",
        config={},
        files=describe(tmp_path / "none"),
    )
    s3.storage.commit(examples, tmp_path / "none")

    def sft(**settings: Any) -> StageResult:
        config = {"base_model": base, "epochs": 0} | settings
        arguments = {"artifact_root": f"{s3.prefix}/a", "experiment": "e", "run_id": "r"}
        return run_stage("sft", config, {"examples": examples}, **arguments)

    first = sft().manifest
    assert first.statistics["started_from"] == tiny_model.name
    warm = sft(warm_start=first.uri).manifest
    assert warm.statistics["started_from"] == first.uri and warm.run_key != first.run_key
    assert warm.statistics["sources"] == [{"uri": first.uri, "sha256": first.digest}]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    tags = {"reasrm.run_key": first.run_key, "reasrm.manifest_uri": first.uri}
    set_alias(name, "champion", register_version(name, f"{first.uri}/model", None, None, tags, "").version)
    assert starting_model(base, f"{name}@champion", s3.storage) == first.uri


def test_an_artifact_without_digests_counts_by_its_pairs(prepare: Any, parts: Any, s3: Any, tmp_path: Path) -> None:
    first = prepare(WEEKS[0]).manifest
    files = tuple(entry for entry in first.files if entry.path not in (SEEN_FILE, TRAINED_FILE))
    old = first.model_copy(update={"uri": f"{first.uri}-old", "files": files})
    s3.storage.commit(old, s3.storage.fetch(first, tmp_path / "first"))
    second = prepare(LINES[:700], since=old.uri, replay_share=0).manifest
    got = parts(second)
    assert not ids(got["distil"] + got["rl"]) & {json.loads(line)["id"] for line in WEEKS[0]}
    # As an earlier version wrote them: digests alone.
    again = first.model_copy(update={"uri": f"{first.uri}-earlier"})
    folder = s3.storage.fetch(first, tmp_path / "first")
    (folder / SEEN_FILE).write_bytes(b"".join(hashlib.sha256(line).digest()[:16] for line in WEEKS[0]))
    (folder / TRAINED_FILE).write_bytes(b"".join(hashlib.sha256(line).digest()[:8] for line in WEEKS[0][:301]))
    s3.storage.commit(again.model_copy(update={"files": describe(folder)}), folder)
    third = prepare(LINES[:700], since=again.uri, replay_share=0).manifest
    assert third.statistics["since"]["new"] == second.statistics["since"]["new"]  # type: ignore[index, call-overload]
