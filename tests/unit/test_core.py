"""Schema, manifest, records, rewards, errors and redaction."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.core.errors import InvalidInput, ReasrmError, Transient, exit_code
from components.core.manifest import FileEntry, Manifest, Parent, describe, run_key
from components.core.records import BadRecord, parse_strict, read_models, read_rows, to_line, write_jsonl
from components.core.redact import RedactFilter, redact
from components.core.rewards import REWARD_RANGE, verdict_reward
from components.core.schema import PreferencePair

PAIR = {"id": "p1", "prompt": "What is 2 + 2?", "response_a": "4", "response_b": "5", "label": "A"}


def test_showing_a_pair_swapped_twice_gives_it_back() -> None:
    pair = PreferencePair.model_validate(PAIR)
    other = pair.shown(swapped=True)
    assert (other.response_a, other.response_b, other.label, other.key) == ("5", "4", "B", "p1:ba")
    assert other.shown(swapped=False) == pair
    assert pair.key == "p1:ab"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "tie"}, "label"),
        ({"response_b": "4"}, "identical"),
        ({"response_b": "  "}, "empty"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": [{"role": "assistant", "content": "hi"}]}, "must end with a user turn"),
        ({"prompt": []}, "prompt"),
        ({"extra": 1}, "extra"),
        ({"id": ""}, "id"),
        ({"response_a": 4}, "response_a"),
    ],
)
def test_pairs_that_cannot_be_judged_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PreferencePair.model_validate(PAIR | change)


def manifest(**change: object) -> Manifest:
    entry = FileEntry(path="a.jsonl", size=1, sha256="0" * 64)
    fields = {
        "kind": "pairs", "stage": "prepare", "uri": "s3://b/p", "run_key": "k", "code_version": "1",
        "config": {"x": 1}, "files": (entry,),
    }  # fmt: skip
    return Manifest.model_validate(fields | change)


def test_manifest_survives_its_own_bytes_and_digest_follows_content() -> None:
    one = manifest()
    assert Manifest.from_bytes(one.to_bytes()) == one
    assert manifest(config={"x": 2}).digest != one.digest
    with pytest.raises(KeyError, match=r"a\.jsonl"):
        one.entry("b.jsonl")
    with pytest.raises(ValueError, match=r"finite|JSON compliant"):
        manifest(statistics={"loss": float("nan")}).to_bytes()


def test_run_key_depends_on_everything_that_decides_the_result() -> None:
    base = run_key("sft", {"lr": 1.0}, {"x": Parent(uri="s3://b/x", digest="d")}, "v1")
    assert base == run_key("sft", {"lr": 1.0}, {"x": Parent(uri="s3://elsewhere", digest="d")}, "v1")
    assert base != run_key("grpo", {"lr": 1.0}, {"x": Parent(uri="s3://b/x", digest="d")}, "v1")
    assert base != run_key("sft", {"lr": 2.0}, {"x": Parent(uri="s3://b/x", digest="d")}, "v1")
    assert base != run_key("sft", {"lr": 1.0}, {"x": Parent(uri="s3://b/x", digest="e")}, "v1")
    assert base != run_key("sft", {"lr": 1.0}, {"x": Parent(uri="s3://b/x", digest="d")}, "v2")
    assert base != run_key("sft", {"lr": 1.0}, {"x": Parent(uri="s3://b/x", digest="d")}, "v1", sources=["f"])


def test_describe_lists_every_file_but_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"bb")
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "manifest.json").write_bytes(b"{}")
    entries = describe(tmp_path)
    assert [(e.path, e.size) for e in entries] == [("a", 0), ("sub/b", 2)]
    assert entries[1].sha256 == "3b64db95cb55c763391c707108489ae18b4112d783300de38e033b4c98c3deaf"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": [1e999]}', "out of range"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "\\u0000"}', "NUL"),
        (b"[" * 100 + b"]" * 100, "nested"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'"' + b"x" * (4 * 2**20) + b'"', "limit"),
        (b'{"a": 1} {"b": 2}', "Extra data"),
        (b"<html>", "Expecting value"),
    ],
)
def test_bad_lines_become_records_with_a_place(line: bytes, words: str) -> None:
    good = b'{"ok": "\xe2\x80\xa8 stays in one row"}\n'
    rows = list(read_rows([good, line + b"\n", good], "f.jsonl"))
    assert [isinstance(row, BadRecord) for row in rows] == [False, True, False]
    bad = rows[1]
    assert isinstance(bad, BadRecord)
    assert words in bad.reason
    assert bad.place == f"f.jsonl:2 (byte {len(good)})"


def test_byte_order_mark_and_blank_lines_are_passed_over() -> None:
    assert list(read_rows([b'\xef\xbb\xbf{"a": 1}\r\n', b"\n"], "f")) == [("f:1 (byte 0)", {"a": 1})]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text("abc", max_size=3), json_values, max_size=4))
def test_strict_parsing_gives_back_what_was_written(value: dict[str, object]) -> None:
    assert parse_strict(to_line(value)) == json.loads(json.dumps(value))


def test_written_models_are_read_back_and_a_bad_row_names_its_place(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pair = PreferencePair.model_validate(PAIR)
    assert write_jsonl(path, [pair, pair]) == 2
    assert read_models(path, PreferencePair) == [pair, pair]
    path.write_bytes(to_line(pair) + b"{")
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2"):
        read_models(path, PreferencePair)


@given(st.text(max_size=60), st.sampled_from(["A", "B"]), st.booleans())
def test_reward_stays_in_its_range(text: str, label: str, truncated: bool) -> None:
    assert verdict_reward(text, label, truncated=truncated) in REWARD_RANGE  # type: ignore[arg-type]


def test_reward_pays_only_for_the_right_single_verdict() -> None:
    right = "<eval>x</eval><answer>[[A]]</answer>"
    assert verdict_reward(right, "A") == 1.0
    assert verdict_reward(right, "B") == -1.0
    assert verdict_reward(right, "A", truncated=True) == -1.0
    assert verdict_reward(right + "<answer>[[B]]</answer>", "A") == -1.0


def test_exit_codes() -> None:
    errors = (InvalidInput("x"), Transient("x"), ReasrmError("x"), KeyError("x"))
    assert [exit_code(error) for error in errors] == [2, 75, 1, 1]


def test_redaction_hides_keys_tokens_and_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TEACHER_KEY", "canary-value-123")
    text = "k=canary-value-123 sk-abcdefghijklmnopqrstu Bearer abc.def.ghi-jkl http://user:pass@host/x"
    hidden = redact(text)
    for secret in ("canary", "sk-abc", "abc.def", "user:pass"):
        assert secret not in hidden
    assert hidden.endswith("@host/x")


def test_log_filter_redacts_arguments_and_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-value-456")
    try:
        raise ValueError("denied for canary-value-456")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "used %s", ("canary-value-456",), info)
    assert RedactFilter().filter(record)
    assert "canary" not in logging.Formatter().format(record)
