"""What a chain of runs remembers of pairs that are not at hand any more: each week's file is read in its week only."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from components.adapters import model_versions
from components.adapters.registry import DIGEST_TAG, MODEL_TAG, PAIRS_TAG
from components.adapters.stage import run_stage
from components.core.errors import InvalidInput, Transient
from components.core.manifest import Manifest, describe, parents_of
from components.core.records import read_models
from components.core.schema import PreferencePair
from components.prepare.before import SEEN_FILE, TRAINED, TRAINED_FILE, open_before
from components.prepare.config import Config
from components.prepare.drift import compare, relabelling
from pipeline import starts
from pipeline.starts import pin

Row = dict[str, Any]


@pytest.fixture
def prepare(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Manifest]:
    """A function that runs the stage on some rows, after what another run has seen."""
    monkeypatch.setenv("REASRM_WORKDIR", str(tmp_path / "work"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def run(rows: Sequence[Row], since: Manifest | None = None, **settings: Any) -> Manifest:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        uri = f"{s3.prefix}/data/{hashlib.sha256(data).hexdigest()[:8]}.jsonl"
        s3.storage.write_bytes(uri, data)
        config = {"sources": [uri], "distil_share": 0.3, "heldout_share": 0.2, "probe_pairs": 0, "processes": 1}
        config |= {"since": since.uri} if since else {}
        made = run_stage("prepare", config | settings, {}, artifact_root=f"{s3.prefix}/a", experiment="e", run_id="r")
        return made.manifest

    return run


@pytest.fixture
def part(s3: Any, tmp_path: Path) -> Callable[[Manifest, str], list[PreferencePair]]:
    def read(manifest: Manifest, name: str) -> list[PreferencePair]:
        folder = s3.storage.fetch(manifest, tmp_path / manifest.run_key[:8])
        return read_models(folder / f"{name}.jsonl", PreferencePair)

    return read


def rows_of(week: int, count: int = 20) -> list[Row]:
    """Rows with nothing in common."""

    def words(*names: object) -> str:
        digest = hashlib.sha512(repr(names).encode()).hexdigest()
        return " ".join(digest[at : at + 4] for at in range(0, 120, 4))

    return [
        {
            "id": f"{week}-{n}",
            "prompt": words("prompt", week, n),
            "response_a": words("a", week, n),
            "response_b": words("b", week, n),
            "label": "AB"[n % 2],
        }
        for n in range(count)
    ]


def turned(row: Mapping[str, Any], name: str) -> Row:
    return {**row, "id": name, "label": "B" if row["label"] == "A" else "A"}


def since(manifest: Manifest) -> Any:
    return manifest.statistics["since"]


def ids(pairs: Sequence[PreferencePair]) -> set[str]:
    return {pair.id for pair in pairs}


def test_seven_weeks(prepare: Any, part: Any, s3: Any, tmp_path: Path) -> None:
    made: list[Manifest] = []
    learned: set[str] = set()
    held = b""
    for week in range(7):
        made.append(prepare(rows_of(week), made[-1] if made else None, replay_share=0.3, max_drift=1))
        now = ids(part(made[-1], "distil")) | ids(part(made[-1], "rl"))
        learned |= now
        before, held = held, (tmp_path / made[-1].run_key[:8] / "heldout.jsonl").read_bytes()
        assert held.startswith(before)
        assert not ids(part(made[-1], "heldout")) & learned  # of all weeks, not only those at hand
        sizes = {entry.path: entry.size for entry in made[-1].files}
        assert sizes[SEEN_FILE] == 16 * 20 * (week + 1)
        assert sizes[TRAINED_FILE] == TRAINED.itemsize * len(learned)
        if week:
            assert sum(since(made[-1])["new"].values()) == 20
            assert since(made[-1])["frozen"] * 2 == len(before.splitlines())
            replayed = len({one for one in now if not one.startswith(f"{week}-")})
            assert sum(since(made[-1])["replayed"].values()) == replayed
    again = prepare(rows_of(0) + rows_of(4), made[-1], replay_share=0, max_drift=1)
    assert again.statistics["nothing_new"]  # what was seen is known, however long ago


def test_near_a_prompt_that_any_run_trained_on_nothing_is_held_out(prepare: Any, part: Any) -> None:
    weeks = [prepare(rows_of(0))]
    weeks.append(prepare(rows_of(1), weeks[0], replay_share=0))
    learned = {pair.id: pair for pair in part(weeks[0], "rl")}
    row = next(row for row in rows_of(0) if row["id"] in learned)
    assert row["id"] not in ids(part(weeks[1], "rl") + part(weeks[1], "distil"))
    fresh = rows_of(7, 3)
    beside = {"near": f"{row['prompt']} please", "opening": [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": "Why?"},
        {"role": "user", "content": "It is for school, and for a friend of mine who asked me too."},
    ]}  # fmt: skip
    added = [{**one, "id": name, "prompt": prompt} for one, (name, prompt) in zip(fresh, beside.items(), strict=False)]
    third = prepare([*rows_of(2), *added], weeks[1], replay_share=0, distil_share=0, heldout_share=0.95, seed=4)
    assert {*beside} <= ids(part(third, "distil") + part(third, "rl"))


def test_another_label_for_a_pair_of_any_run_is_told_once_and_trained_on_never(prepare: Any, part: Any) -> None:
    first = prepare(rows_of(0))
    second = prepare(rows_of(1), first, replay_share=0)
    by_id = {row["id"]: row for row in rows_of(0)}
    held, learned = (by_id[part(first, name)[0].id] for name in ("heldout", "rl"))
    flipped = [turned(held, "held"), turned(learned, "learned")]
    third = prepare([*rows_of(2), *flipped], second, replay_share=0)
    assert since(third)["relabelled"] == {"heldout": 1, "other": 1}
    assert third.statistics["dropped"]["contradicting labels"] == 2  # type: ignore[index, call-overload]
    (shift,) = (one for one in third.statistics["drift"] if one["name"] == "relabelled")  # type: ignore[union-attr, index, call-overload]
    assert shift["new"] == {"as before": 0.0, "other": 1.0}  # type: ignore[index, call-overload]
    fourth = prepare([*rows_of(3), *flipped, {**learned, "id": "once more"}], third, replay_share=1)
    assert since(fourth)["relabelled"] == {"heldout": 0, "other": 0}
    assert not {"held", "learned", "once more"} & ids(part(fourth, "distil") + part(fourth, "rl"))
    assert held["id"] in ids(part(fourth, "heldout"))


def test_a_week_of_broken_rows_is_no_week_with_nothing_new(prepare: Any) -> None:
    first = prepare(rows_of(0, 200), max_bad_fraction=0.5)
    broken = [{**row, "label": "C"} for row in rows_of(1, 3)]
    with pytest.raises(InvalidInput, match=r"3 of 3 new rows \(100\.0%\) cannot be used"):
        prepare([*rows_of(0, 200), *broken], first, max_bad_fraction=0.02)
    with pytest.raises(InvalidInput, match=r"no rows in s3://.*/data/"):
        prepare([], first)
    second = prepare([*rows_of(2), *broken], first, max_bad_fraction=0.5)
    again = prepare([*rows_of(3), *rows_of(2), *broken], second, max_bad_fraction=0)  # read before, so told before
    assert again.statistics["bad"] == second.statistics["bad"]
    other = [{**row, "prompt": f"Other than {row['id']}?"} for row in rows_of(2, 10)]
    told = (
        r"10 of 30 new rows .* duplicate id: s3://.* of an earlier run; give a row that was corrected an id of its own"
    )
    with pytest.raises(InvalidInput, match=told):
        prepare([*rows_of(4), *other], second)


def test_pairs_learned_before_a_benchmark_came_are_told(prepare: Any, s3: Any) -> None:
    first = prepare(rows_of(0))
    uri = f"{s3.prefix}/data/bench.jsonl"
    s3.storage.write_bytes(uri, b"".join(json.dumps(row).encode() + b"\n" for row in [*rows_of(0), *rows_of(1, 2)]))
    second = prepare(rows_of(1), first, benchmarks=[{"name": "bench", "uri": uri, "format": "pairs"}], max_drift=1)
    pairs: Any = first.statistics["pairs"]
    assert since(second)["learned_overlap"] == {"bench": pairs["distil"] + pairs["rl"]}
    assert since(second)["new_overlap"] == {"bench": 2}


def test_a_few_new_pairs_are_enough(prepare: Any) -> None:
    first = prepare(rows_of(0, 60))
    second = prepare(rows_of(1, 5), first, probe_pairs=10_000, replay_share=0, on_drift="stop", distil_share=0.5)
    assert sum(since(second)["new"].values()) == 5


def test_few_pairs_of_many_sources_are_no_drift_by_chance() -> None:
    names = [f"source-{n}" for n in range(400) for _ in range(1 + 400 // (n + 1))]
    old = [
        PreferencePair.model_validate(row | {"source": name})
        for row, name in zip(rows_of(0, len(names)), names, strict=True)
    ]
    alarms = [shift for at in range(60) for shift in compare(old, old[at * 37 :: 499][:5], 0.2) if shift.drifted]
    assert len(alarms) <= 3  # of 60; by the chi-squared distribution about 20
    odd = [pair.model_copy(update={"source": "unheard of"}) for pair in old[:5]]
    assert "source" in {shift.name for shift in compare(old, odd, 0.2) if shift.drifted}
    assert relabelling(1000, 300, 0.2).drifted and not relabelling(1000, 100, 0.2).drifted
    assert not relabelling(0, 0, 0.2).drifted


def test_a_run_starts_only_from_what_its_held_out_pairs_are_new_to(
    prepare: Any, s3: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepare(rows_of(0))
    second, other = prepare(rows_of(1), first), prepare(rows_of(5))
    models = {}
    for name, pairs in {"first": first, "other": other}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
        models[name] = Manifest(
            kind="model", stage="sft", uri=f"{s3.prefix}/a/sft/{name}", run_key="0" * 64, code_version="0",
            config={"base_model": "org/small@1"},
            files=describe(tmp_path / name), parents=parents_of({"pairs": pairs}),
        )  # fmt: skip
        s3.storage.commit(models[name], tmp_path / name)

    def start(pairs: Manifest | None, model: str, base: str = "org/small@1") -> dict[str, str]:
        since, warm = pairs.uri if pairs else "", models[model].uri
        stages = {"prepare_config": json.dumps({"since": since}), "sft_config": json.dumps({"warm_start": warm})}
        return pin({**stages, "base_model": base})[1]

    assert start(first, "first") == {"since": first.uri, "warm_start": models["first"].uri}
    assert start(second, "first")["since"] == second.uri  # it has seen what the first has
    assert "which was made from" not in caplog.text
    assert start(first, "first", "org/large@1")
    assert "base_model is org/large@1, but training starts from" in caplog.text
    for pairs, model, told in ((second, "other", "leads to"), (None, "first", "names nothing")):
        with pytest.raises(InvalidInput, match=f"learned from the pairs of s3://.*, but prepare.since {told}"):
            start(pairs, model)
    s3.storage.delete([f"{models['first'].uri}/weights"])
    with pytest.raises(InvalidInput, match=r"of which 1 of 1 files are gone or not whole, such as weights"):
        start(first, "first")
    s3.storage.delete([f"{first.uri}/{SEEN_FILE}"])
    with pytest.raises(InvalidInput, match=r"prepare\.since: s3://.* such as seen\.bin; restore them"):
        start(first, "other")


def test_pairs_and_model_are_of_one_champion_though_it_changes_in_between(
    prepare: Any, s3: Any, served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Those of two would teach the model nothing of what only the later one's pairs hold."""
    first = prepare(rows_of(0))
    name, weeks = f"judge-{s3.prefix[-6:]}", [first, prepare(rows_of(1), first)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.environment()["MLFLOW_TRACKING_URI"])
    for number, pairs in enumerate(weeks, 1):
        model = Manifest(
            kind="model", stage="sft", uri=f"{s3.prefix}/a/sft/{number}", run_key="0" * 64, code_version="0", config={},
            files=(), parents=parents_of({"pairs": pairs}),
        )  # fmt: skip
        s3.storage.commit(model, tmp_path)
        tags = {"reasrm.run_key": str(number), MODEL_TAG: model.uri, PAIRS_TAG: pairs.uri, DIGEST_TAG: model.digest}
        model_versions.register_version(name, f"{model.uri}/model", None, None, tags, "")
    model_versions.set_alias(name, "champion", "2")
    looked = starts.check_files

    def rolled_back_meanwhile(*given: Any) -> None:
        looked(*given)
        model_versions.set_alias(name, "champion", "1")

    monkeypatch.setattr(starts, "check_files", rolled_back_meanwhile)
    champion = f"{name}@champion"
    stages = {"prepare_config": json.dumps({"since": champion}), "sft_config": json.dumps({"warm_start": champion})}
    assert pin({**stages, "base_model": ""})[1] == {"since": weeks[1].uri, "warm_start": f"{s3.prefix}/a/sft/2"}
    assert "nobody is" not in caplog.text
    model_versions.delete_alias(name, "champion")
    assert pin({**stages, "base_model": ""})[1] == {"since": "", "warm_start": ""}
    assert f"prepare.since: nobody is {champion}, though {name} has versions, the newest is 2" in caplog.text
    with pytest.raises(InvalidInput, match=f"prepare.since is {name}/3, but MLflow's registry has no such version"):
        pin({**stages, "prepare_config": json.dumps({"since": f"{name}/3"}), "base_model": ""})


def test_a_start_that_is_gone_meanwhile_is_not_taken_for_a_first_run(
    prepare: Any, s3: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(rows_of(0))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.environment()["MLFLOW_TRACKING_URI"])
    named = {"uri": "s3://b/pairs.jsonl", "sha256": "0"}, {"uri": first.uri, "sha256": first.digest}

    class Output:
        storage, sources = s3.storage, named

    settings = Config(sources=("s3://b/pairs.jsonl",), since=f"nobody-{s3.prefix[-6:]}@champion")  # type: ignore[arg-type]
    with pytest.raises(Transient, match="another version, or nobody"):
        open_before(settings, Output())  # type: ignore[arg-type]
