"""Reading, sieving and splitting of preference pairs."""

import gzip
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import ValidationError

from components.adapters.progress import Progress
from components.adapters.stage import Output
from components.core.errors import InvalidInput
from components.core.records import BadRecord, read_models
from components.core.schema import PreferencePair
from components.prepare.config import Config
from components.prepare.forms import to_pair
from components.prepare.read import read_source
from components.prepare.run import run
from components.prepare.split import normalise, part_of, place_answers, rank


def row(number: int, **change: Any) -> dict[str, Any]:
    return {
        "id": f"p{number}",
        "prompt": f"What is {number} + 1?",
        "response_a": f"{number + 1}",
        "response_b": f"It is {number + 2}",
        "label": "A" if number % 3 else "B",
        "source": "sums",
        "category": "math" if number % 2 else "chat",
    } | change


def write(path: Path, rows: list[Any]) -> str:
    lines = [item if isinstance(item, str) else json.dumps(item) for item in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def prepare(tmp_path: Path, sources: list[str], **settings: Any) -> tuple[dict[str, Any], Path]:
    directory, workdir = tmp_path / "out", tmp_path / "work"
    directory.mkdir(exist_ok=True)
    workdir.mkdir(exist_ok=True)
    nowhere: Any = SimpleNamespace()  # local sources need neither S3 nor MLflow
    output = Output("s3://b/p", directory, workdir, nowhere, nowhere, Progress("prepare"), "key")
    config = Config(sources=tuple(sources), **({"distil_share": 0.3, "heldout_share": 0.2} | settings))
    return run(config, {}, output), directory  # type: ignore[arg-type]


def parts(directory: Path) -> dict[str, list[PreferencePair]]:
    return {name: read_models(directory / f"{name}.jsonl", PreferencePair) for name in ("distil", "rl", "heldout")}


def quarantined(directory: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (directory / "quarantine.jsonl").read_text().splitlines()]


def test_every_pair_lands_in_exactly_one_part_and_held_out_pairs_in_both_orders(tmp_path: Path) -> None:
    statistics, directory = prepare(tmp_path, [write(tmp_path / "a.jsonl", [row(n) for n in range(200)])])
    found = parts(directory)
    ids = [{pair.id for pair in pairs} for pairs in found.values()]
    assert set.union(*ids) == {f"p{n}" for n in range(200)}
    assert sum(map(len, ids)) == 200
    held_out = Counter(pair.id for pair in found["heldout"])
    assert set(held_out.values()) == {2}
    assert statistics["pairs"] == {name: len(one) for name, one in zip(found, ids, strict=True)}
    assert statistics["label_a_share"]["heldout"] == 0.5
    keys = [pair.key for pair in found["heldout"]]
    assert keys[0].removesuffix(":ab") == keys[1].removesuffix(":ba")


def test_showing_a_pair_keeps_which_text_is_better(tmp_path: Path) -> None:
    rows = [row(n) for n in range(200)]
    _, directory = prepare(tmp_path, [write(tmp_path / "a.jsonl", rows)])
    better = {r["id"]: r["response_a"] if r["label"] == "A" else r["response_b"] for r in rows}
    shown = [pair for pairs in parts(directory).values() for pair in pairs]
    for pair in shown:
        assert (pair.response_a if pair.label == "A" else pair.response_b) == better[pair.id]
    swapped = sum(pair.swapped for pair in parts(directory)["rl"])
    assert 0.3 < swapped / len(parts(directory)["rl"]) < 0.7


def test_pairs_of_one_prompt_stay_together_however_it_is_typed(tmp_path: Path) -> None:
    rows = []
    for n in range(60):
        rows.append(row(n))
        rows.append(row(n, id=f"again{n}", prompt=f"  what is\t{n} + 1", response_b="no idea"))
    _, directory = prepare(tmp_path, [write(tmp_path / "a.jsonl", rows)])
    prompts = [{normalise(pair) for pair in pairs} for pairs in parts(directory).values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 60


def test_same_seed_same_bytes_and_another_seed_another_split(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [row(n) for n in range(100)])
    results = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        (tmp_path / name).mkdir()
        _, directory = prepare(tmp_path / name, [source], seed=seed)
        results.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_more_data_moves_no_pair_to_another_part(tmp_path: Path) -> None:
    config = Config(sources=("a.jsonl",))
    pairs = [to_pair(row(n)) for n in range(50)]
    before = [part_of(pair, config) for pair in pairs]
    assert before == [part_of(pair, Config(sources=("b.jsonl", "a.jsonl"), max_rl=3)) for pair in pairs]
    assert [rank(p, config) for p in pairs] == [rank(p.shown(swapped=True), config) for p in pairs]


def test_limits_keep_a_sample_of_all_sources_and_count_the_rest(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [row(n, source="one") for n in range(300)])
    second = write(tmp_path / "b.jsonl", [row(n, source="two") for n in range(300, 600)])
    statistics, directory = prepare(tmp_path, [first, second], max_rl=60, max_distil=10, max_heldout=5)
    found = parts(directory)
    assert [len(found[name]) for name in ("distil", "rl", "heldout")] == [10, 60, 10]
    assert sum(statistics["unused"].values()) + 75 == 600
    assert min(Counter(pair.source for pair in found["rl"]).values()) > 15


def test_ties_duplicates_and_long_pairs_are_dropped_with_their_place_and_are_not_bad(tmp_path: Path) -> None:
    rows = [row(n) for n in range(100)]
    rows += [row(100, label="tie"), row(1, response_b="other"), row(101, prompt=row(2)["prompt"], **answers(2))]
    rows += [row(102, prompt="x" * 3000), row(103, source="magpie_ultra"), row(104, id="c", **flipped(3))]
    source = write(tmp_path / "a.jsonl", rows)
    statistics, directory = prepare(
        tmp_path, [source], max_bad_fraction=0, max_chars=2000, exclude_sources=["magpie_ultra"]
    )
    assert statistics["bad"] == {}
    assert statistics["dropped"] == {
        "tie": 1,
        "duplicate id": 1,
        "duplicate content": 1,
        "longer than max_chars": 1,
        "source is excluded": 1,
        "duplicate content with the other label": 1,
    }
    assert [item["place"].split(" ")[0] for item in quarantined(directory)] == [
        f"{source}:{n}" for n in range(101, 107)
    ]
    assert {item["kind"] for item in quarantined(directory)} == {"dropped"}


def answers(number: int) -> dict[str, str]:
    return {key: row(number)[key] for key in ("response_a", "response_b", "label")}


def flipped(number: int) -> dict[str, str]:
    one = row(number)
    return {
        "prompt": one["prompt"],
        "response_a": one["response_b"],
        "response_b": one["response_a"],
        "label": one["label"],
    }


BAD = {
    "not JSON": "{",
    "NaN": '{"id": "x", "meta": {"score": NaN}}',
    "twice": '{"id": "x", "id": "y"}',
    "no columns": {"id": "x"},
    "identical": row(900, response_b="901"),
    "empty": row(901, response_a=" "),
    "label": row(902, label="C"),
    "unknown": row(903, colour="blue"),
    "a list": [1, 2],
    "no user turn": row(904, prompt=[{"role": "assistant", "content": "hi"}]),
    "surrogate": '{"id": "\\ud800"}',
    "NUL": '{"id": "a\\u0000b"}',
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_quarantined_and_the_rest_goes_on(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [*[row(n) for n in range(50)], BAD[name], *[row(n) for n in range(50, 150)]])
    statistics, directory = prepare(tmp_path, [source])
    assert sum(statistics["bad"].values()) == 1
    assert statistics["pairs"]["rl"] + statistics["pairs"]["distil"] + statistics["pairs"]["heldout"] == 150
    (item,) = quarantined(directory)
    assert item["kind"] == "bad"
    assert item["place"].startswith(f"{source}:51 ")
    assert item["reason"]
    assert item["excerpt"]


def test_too_many_bad_rows_name_the_count_and_the_first_five(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [*[row(n) for n in range(100)], *[row(200 + n, label="C") for n in range(7)]])
    with pytest.raises(InvalidInput, match=r"7 of 107 rows \(6.5%\) cannot be used") as caught:
        prepare(tmp_path, [source])
    assert [f"{source}:{n} " in str(caught.value) for n in range(101, 108)] == [True] * 5 + [False] * 2


def test_odd_text_neither_splits_a_row_nor_is_lost(tmp_path: Path) -> None:
    odd = "one\u2028two\u0085three\r\nfour 🎲"
    rows = [row(n, response_b=odd) for n in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(r, ensure_ascii=False).encode() for r in rows))
    _, directory = prepare(tmp_path, [str(path)])
    shown = [pair for pairs in parts(directory).values() for pair in pairs]
    assert {odd in (pair.response_a, pair.response_b) for pair in shown} == {True}
    assert len({pair.id for pair in shown}) == 60


def test_invalid_utf8_is_quarantined_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(json.dumps(row(n)).encode() + b"\n" for n in range(150)) + b'{"id": "\xff"}\n')
    _, directory = prepare(tmp_path, [str(path)])
    assert "invalid UTF-8 at byte 8" in quarantined(directory)[0]["reason"]


def test_missing_empty_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.jsonl"):
        prepare(tmp_path, [str(tmp_path / "nowhere.jsonl")])
    with pytest.raises(InvalidInput, match=r"no rows in .*empty\.jsonl"):
        prepare(tmp_path, [write(tmp_path / "empty.jsonl", [])])
    packed = tmp_path / "cut.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(row(n)) + "\n" for n in range(500)).encode())[:-40])
    with pytest.raises(InvalidInput, match=r"cut\.jsonl\.gz is a broken gzip file"):
        prepare(tmp_path, [str(packed)])
    (tmp_path / "not.parquet").write_bytes(b"PAR0")
    with pytest.raises(InvalidInput, match=r"not\.parquet cannot be read as Parquet"):
        prepare(tmp_path, [str(tmp_path / "not.parquet")])


def test_a_part_without_pairs_is_an_error_that_says_which(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [row(1)])
    with pytest.raises(InvalidInput, match=r"no pairs fall into the part '(distil|rl|heldout)'"):
        prepare(tmp_path, [source])


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def test_message_form_becomes_a_pair_whose_first_answer_is_the_chosen_one() -> None:
    pair = to_pair({"chosen": turns("hi", "hello", "bye", "see you"), "rejected": turns("hi", "hello", "bye", "go")})
    assert (pair.response_a, pair.response_b, pair.label, len(pair.prompt)) == ("see you", "go", "A", 3)
    assert len(pair.id) == 20
    same = to_pair({"prompt": turns("hi", "hello", "bye"), "response_a": "see you", "response_b": "go", "label": "A"})
    assert (same.prompt, same.response_a) == (pair.prompt, pair.response_a)


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "hi", "chosen": "yes", "rejected": "no"},
        {"prompt": turns("hi"), "chosen": turns("", "yes")[1:], "rejected": turns("", "no")[1:]},
        {"prompt": "hi", "chosen": turns("hi", "yes"), "rejected": turns("hi", "no"), "score": 3, "category": None},
    ],
)
def test_all_layouts_of_the_message_form_mean_the_same(columns: dict[str, Any]) -> None:
    pair = to_pair(columns | {"id": 7, "source": "s"})
    assert (pair.id, pair.prompt[0].content, pair.response_a, pair.response_b) == ("7", "hi", "yes", "no")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"chosen": turns("hi", "yes"), "rejected": turns("ho", "no")}, "differ before the last turn"),
        ({"chosen": turns("hi", "yes"), "rejected": turns("hi")}, "end with an assistant turn"),
        ({"chosen": [], "rejected": []}, "neither a text nor a list"),
        ({"chosen": "yes", "rejected": "no"}, "there must be a prompt"),
        ({"chosen": turns("", "yes")[1:], "rejected": turns("", "no")[1:]}, "prompt"),
        ({"chosen": turns("hi", "yes"), "rejected": [{"role": "assistant"}]}, "differ"),
    ],
)
def test_message_rows_that_are_no_pairs_say_why(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_pair(columns)


def test_known_extra_columns_go_into_meta() -> None:
    pair = to_pair(row(1, label_type="human", licence="MIT", meta={"votes": [1, 2]}))
    assert pair.meta == {"votes": [1, 2], "label_type": "human", "licence": "MIT"}


def test_parquet_gives_the_same_pairs_as_json_lines(tmp_path: Path) -> None:
    rows = [row(n, meta={"n": n}, label_type="human") for n in range(700)]
    parquet.write_table(pyarrow.Table.from_pylist([*rows[:-1], rows[-1] | {"source": None}]), tmp_path / "a.parquet")
    lines = list(read_source(Path(write(tmp_path / "a.jsonl", rows[:-1])), "a.jsonl"))
    cells = list(read_source(tmp_path / "a.parquet", "a.parquet"))
    assert [item[1] for item in lines if not isinstance(item, BadRecord)] == [
        item[1] for item in cells[:-1] if not isinstance(item, BadRecord)
    ]
    assert len(cells) == 700
    assert not isinstance(cells[-1], BadRecord)
    assert cells[-1][0] == "a.parquet:row 700"
    assert "source" not in cells[-1][1]


def test_a_parquet_row_with_a_nul_is_bad_alone(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([row(1), row(2, response_a="a\0b"), row(3)])
    parquet.write_table(table, tmp_path / "a.parquet")
    found = [isinstance(item, BadRecord) for item in read_source(tmp_path / "a.parquet", "a.parquet")]
    assert found == [False, True, False]


def test_many_categories_are_summed_up_and_none_is_lost(tmp_path: Path) -> None:
    rows = [row(n, category="other" if n < 20 else f"kind {n}") for n in range(200)]
    statistics, _ = prepare(tmp_path, [write(tmp_path / "a.jsonl", rows)])
    counted = statistics["categories"]["rl"]
    assert sum(counted.values()) == statistics["pairs"]["rl"]
    assert len(counted) == 31
    assert 0 < counted["other"] <= 20
    assert counted["(rest)"] > 20


def test_longer_is_better_is_the_baseline_of_the_held_out_pairs(tmp_path: Path) -> None:
    rows = [row(n, response_a="short", response_b="much longer", label="B") for n in range(60)]
    statistics, _ = prepare(tmp_path, [write(tmp_path / "a.jsonl", rows)])
    assert statistics["longer_is_better"] == 1.0


def test_marks_that_had_to_be_escaped_are_counted(tmp_path: Path) -> None:
    rows = [row(n, response_a="so [[A]]" if n < 3 else "4") for n in range(60)]
    source = write(tmp_path / "a.jsonl", rows)
    statistics, directory = prepare(tmp_path, [source])
    assert statistics["escaped_marks"] == sum(
        "[[A]]" in pair.response_a + pair.response_b for pairs in parts(directory).values() for pair in pairs
    )
    assert statistics["escaped_marks"] >= 3


@pytest.mark.parametrize(
    "settings",
    [
        {"sources": []},
        {"sources": ["a.csv"]},
        {"sources": ["a.jsonl"], "distil_share": 0.9, "heldout_share": 0.1},
        {"sources": ["a.jsonl"], "max_rl": 0},
        {"sources": ["a.jsonl"], "maxrl": 5},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(settings)


@given(st.text(min_size=1).filter(str.strip), st.integers(0, 2**31))
def test_position_is_a_function_of_seed_and_id_alone(identity: str, seed: int) -> None:
    config = Config(sources=("a.jsonl",), seed=seed)
    one = PreferencePair.model_validate(row(1, id=identity))
    two = PreferencePair.model_validate(row(2, id=identity))
    assert place_answers(one, config).swapped == place_answers(two, config).swapped
