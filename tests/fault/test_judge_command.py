"""`reasrm judge` and the models that its references name."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from components.adapters import model_versions
from components.adapters.judging.finding import find_model
from components.adapters.judging.pairs_file import held
from components.core import prompts
from components.core.manifest import Manifest, describe
from components.core.records import MAX_LINE_BYTES
from components.core.verdict import parse_verdict
from pipeline import cli

REPLIES = re.compile(r"\[Reply A\]\n(.*?)\n\[End of reply A\].*\[Reply B\]\n(.*?)\n\[End of reply B\]", re.DOTALL)
ROWS = [
    {"id": "one", "prompt": "q1", "response_a": "long answer", "response_b": "short", "label": "A", "source": "mine"},
    {"id": "two", "prompt": "q2", "response_a": "x", "response_b": "xx", "label": "A"},
    {"id": "two", "prompt": "q2", "response_a": "xx", "response_b": "x", "label": "B", "swapped": True},
    {"conversation": [{"role": "user", "content": "q3"}], "response_a": "same length", "response_b": "same_length"},
]


@pytest.fixture
def reasrm(capfdbinary):
    """Run the command line in this process; gives exit code, standard output and standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        captured = capfdbinary.readouterr()
        return ended.value.code, captured.out.decode(), captured.err.decode()

    return call


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def judging(teacher_server, pairs):
    """The command's arguments for a scripted judge that names the longer answer, and the first of two as long."""

    def script(call):
        a, b = REPLIES.search(call.prompt).groups()
        text = f"<eval>So.</eval><answer>[[{'A' if len(a) >= len(b) else 'B'}]]</answer>"
        assert parse_verdict(text).winner
        return teacher_server.answer(body=teacher_server.completion(text))

    teacher_server.script = script
    return ["judge", "--model", "m", "--base-url", teacher_server.url, "--pairs", pairs]


def read(path):
    return {row["id"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}


def test_each_pair_has_a_verdict_of_both_orders(reasrm, judging, teacher_server, tmp_path):
    code, out, err = reasrm(*judging, "--output", tmp_path / "v.jsonl")
    assert (code, out) == (0, "")
    rows = read(tmp_path / "v.jsonl")
    (third,) = rows.keys() - {"one", "two"}
    told = {
        name: (row["verdict"], row["confidence"], row["consistent"], row["score_a"], row["label"])
        for name, row in rows.items()
    }
    assert told == {
        "one": ("A", 1.0, True, 1.0, "A"),
        "two": ("B", 1.0, True, 0.0, "A"),
        third: (None, None, False, 0.5, None),
    }
    assert [(one["order"], one["verdict"]) for one in rows["two"]["judgments"]] == [("ab", "B"), ("ba", "B")]
    assert "So." in rows["one"]["judgments"][0]["reasoning"]
    assert "3 pairs (3 judged now) by m: A 1, B 1, no verdict 1" in err
    assert "accuracy 0.500 on 2 with a label" in err
    assert "agree on 0.667" in err
    assert len(teacher_server.calls) == 6


def test_what_is_judged_is_not_judged_again(reasrm, judging, teacher_server, tmp_path):
    output = tmp_path / "v.jsonl"
    reasrm(*judging, "--output", output)
    whole = output.read_bytes()
    first = whole.splitlines(keepends=True)[0]
    output.write_bytes(first + b'{"id": "half a li')  # a run that was killed while it wrote
    before = len(teacher_server.calls)
    code, _, err = reasrm(*judging, "--output", output, "--json")
    assert code == 0
    assert sorted(output.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert len(teacher_server.calls) - before == 4
    facts = json.loads(err.splitlines()[-1])
    assert (facts["pairs"], facts["judged_now"], facts["judgments"], facts["causes"]) == (3, 2, 6, {"ok": 6})
    reasrm(*judging, "--output", output)
    assert len(teacher_server.calls) - before == 4


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--max-tokens", "99"], "or with other settings"),
        (["--votes", "2"], "2 votes at temperature 0"),
        (["--extra-body", "{"], "Expecting"),
        (["--api-key-env", "HOME"], "api_key_env"),
    ],
)
def test_settings_that_do_not_go_are_said(reasrm, judging, tmp_path, more, words):
    output = tmp_path / "v.jsonl"
    reasrm(*judging, "--output", output)
    code, _, err = reasrm(*judging, "--output", output, *more)
    assert code == 2
    assert words in err


def test_verdicts_on_two_prompts_do_not_stand_in_one_file(reasrm, judging, tmp_path, monkeypatch):
    output, read_text = tmp_path / "v.jsonl", prompts.load_text
    reasrm(*judging, "--output", output)
    monkeypatch.setattr(prompts, "load_text", lambda name: read_text(name) + "\nBe fair.")  # as a later version has it
    code, _, err = reasrm(*judging, "--output", output)
    assert (code, "another prompt or precision" in err) == (2, True)


def test_a_pair_that_changed_is_not_passed_over(reasrm, judging, pairs, tmp_path):
    output = tmp_path / "v.jsonl"
    reasrm(*judging, "--output", output)
    pairs.write_text(json.dumps(ROWS[0] | {"response_b": "other"}) + "\n", encoding="utf-8")
    code, _, err = reasrm(*judging, "--output", output)
    assert (code, "pair 'one' has other texts" in err) == (2, True)


def test_labels_count_as_they_stand_in_the_file_now(reasrm, judging, pairs, tmp_path):
    output = tmp_path / "v.jsonl"
    pairs.write_text("".join(json.dumps({**row, "label": None}) + "\n" for row in ROWS), encoding="utf-8")
    _, _, err = reasrm(*judging, "--output", output, "--json")
    assert "accuracy" not in json.loads(err.splitlines()[-1])
    pairs.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]), encoding="utf-8")
    _, _, err = reasrm(*judging, "--output", output, "--json")
    facts = json.loads(err.splitlines()[-1])
    assert (facts["judged_now"], facts["labelled"], facts["accuracy"]) == (0, 2, 0.5)
    assert (facts["pairs"], facts["judgments"]) == (2, 4)  # those of the file, though the output has more


def test_a_pair_that_comes_again_is_told_and_must_not_contradict_itself(reasrm, judging, pairs, teacher_server):
    rows = [
        {"prompt": "q", "response_a": "long", "response_b": "x"},
        {"prompt": "q", "response_a": "x", "response_b": "long", "label": "B"},  # the same, and now with a label
        {"prompt": "q", "response_a": "long", "response_b": "x", "label": "B"},
        {"id": 7, "prompt": "r", "response_a": "long", "response_b": "x", "label": "A"},
        {"id": 7, "prompt": "r", "response_a": "x", "response_b": "long", "label": "A"},
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, out, err = reasrm(*judging)
    assert (code, len(out.splitlines()), len(teacher_server.calls)) == (0, 2, 4)
    assert err.count("occurs twice, with another label") == 2
    assert "1 rows are an earlier pair again" in err
    assert "accuracy 1.000 on 2 with a label" in err


def test_a_line_of_many_long_judgments_is_read_again(reasrm, judging, pairs, teacher_server, tmp_path):
    text = f"<eval>{'Because. ' * 40_000}</eval><answer>[[A]]</answer>"
    teacher_server.script = lambda call: teacher_server.answer(body=teacher_server.completion(text))
    pairs.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    command = [*judging, "--votes", "7", "--temperature", "1", "--output", tmp_path / "v.jsonl"]
    assert reasrm(*command)[0] == 0
    assert (tmp_path / "v.jsonl").stat().st_size > MAX_LINE_BYTES
    code, _, err = reasrm(*command)
    assert (code, len(teacher_server.calls)) == (0, 14), err


@pytest.mark.parametrize("foreign", [json.dumps(ROWS[0]), json.dumps(ROWS[:2]), "x"])
def test_a_file_that_is_no_output_of_ours_is_left_as_it_is(reasrm, judging, teacher_server, tmp_path, foreign):
    output = tmp_path / "mine.json"
    for text in (foreign, foreign + "\n"):  # many editors and programs end a file without one
        output.write_text(text, encoding="utf-8")
        code, _, err = reasrm(*judging, "--output", output)
        assert (code, "of ours" in err, output.read_text("utf-8")) == (2, True, text)
    assert teacher_server.calls == []


def test_an_output_that_is_half_a_line_is_begun_anew(reasrm, judging, tmp_path):
    output = tmp_path / "v.jsonl"
    reasrm(*judging, "--output", output)
    whole = output.read_bytes()
    for num_bytes in (1, 20, len(whole.splitlines()[0])):
        output.write_bytes(whole[:num_bytes])  # a run that was killed while it wrote its first line
        assert reasrm(*judging, "--output", output)[0] == 0
        assert sorted(output.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_what_the_judges_server_keeps_apart_is_kept_beside_the_text(reasrm, judging, teacher_server, tmp_path):
    script = teacher_server.script

    def apart(call):
        message = json.loads(script(call).body)["choices"][0]["message"]
        return teacher_server.answer(body=teacher_server.completion(message["content"], reasoning_content="Long."))

    plain, output = tmp_path / "plain.jsonl", tmp_path / "v.jsonl"
    reasrm(*judging, "--output", plain)
    teacher_server.script = apart
    reasrm(*judging, "--output", output)
    rows, before = read(output), read(plain)
    assert {one["thinking"] for row in rows.values() for one in row["judgments"]} == {"Long."}
    assert {name: row["key"] for name, row in rows.items()} == {name: row["key"] for name, row in before.items()}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        name: row["verdict"] for name, row in before.items()
    }


def test_two_runs_do_not_write_one_output(reasrm, judging, tmp_path):
    output = tmp_path / "v.jsonl"
    with held(output):
        code, _, err = reasrm(*judging, "--output", output)
    assert (code, "another run is writing" in err, output.read_bytes()) == (2, True, b"")
    code, _, err = reasrm(*judging, "--output", tmp_path / "no" / "v.jsonl")
    assert (code, "cannot be written" in err) == (2, True)


def test_a_long_run_says_in_the_log_that_it_goes_on(judging, tmp_path):
    """Where no terminal is, as under nohup or in a pod."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, judging), "--output", str(tmp_path / "v.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert re.search(r"INFO m: \d of 3 \d+ tokens/s", done.stderr), done.stderr


def test_without_an_output_verdicts_go_to_the_screen_and_bad_rows_are_told(reasrm, judging, pairs):
    with pairs.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "q", "response_a": "a"}\nnot json\n')
        file.write(json.dumps(ROWS[0] | {"response_b": "twice"}) + "\n")
    code, out, err = reasrm(*judging)
    assert (code, len(out.splitlines())) == (0, 3)
    assert "3 rows are no pairs" in err
    assert "pairs.jsonl:5" in err and "response_b: Field required" in err and "occurs twice" in err


def test_bad_rows_are_kept_beside_the_output(reasrm, judging, pairs, tmp_path):
    with pairs.open("a", encoding="utf-8") as file:
        file.write("not json\n")
    reasrm(*judging, "--output", tmp_path / "v.jsonl")
    assert "not json" in (tmp_path / "v.jsonl.bad.jsonl").read_text("utf-8")
    pairs.write_text("{}\n", encoding="utf-8")
    code, _, err = reasrm(*judging)
    assert (code, "has no pair to judge" in err) == (2, True)


@pytest.mark.parametrize(
    ("model", "words"), [("no-such-model", "there is no model folder"), ("a b", "there is no model folder")]
)
def test_a_model_that_is_not_there_is_said(reasrm, pairs, tmp_path, monkeypatch, model, words):
    for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = reasrm("judge", "--model", model, "--pairs", pairs, "--dir", tmp_path / "none")
    assert (code, words in err) == (2, True)


def test_s3_is_asked_where_the_environment_says_whichever_variable_says_it(s3, reasrm, pairs, tmp_path, monkeypatch):
    """Also where the folder of a local run is there, whose servers would know nothing of it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.storage.endpoint)
    for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name)
    (tmp_path / "local").mkdir()
    command = ["judge", "--model", f"{s3.prefix}/none", "--pairs", pairs, "--dir", tmp_path / "local"]
    code, _, err = reasrm(*command)
    assert (code, f"{s3.prefix}/none" in err) == (2, True)
    assert list((tmp_path / "local").iterdir()) == []  # no servers were begun in it


def test_a_service_beyond_this_machine_wants_a_token(reasrm, monkeypatch):
    command = ["serve", "--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--host", "0.0.0.0"]
    code, _, err = reasrm(*command)
    assert (code, "--token-env" in err) == (2, True)
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    code, _, err = reasrm(*command, "--token-env", "NO_SUCH_TOKEN")
    assert (code, "NO_SUCH_TOKEN is not set" in err) == (2, True)


def test_a_registered_version_of_a_random_model_judges_without_a_verdict(
    s3, tiny_model, tmp_path, reasrm, pairs, caplog
):
    shutil.copytree(tiny_model, tmp_path / "tiny" / "model")
    names = {"kind": "model", "stage": "grpo", "uri": f"{s3.prefix}/tiny", "run_key": "k", "code_version": "1"}
    manifest = Manifest.model_validate({**names, "config": {"grammar": "think"}, "files": describe(tmp_path / "tiny")})
    s3.storage.commit(manifest, tmp_path / "tiny")
    name = f"judge-{s3.prefix.rpartition('-')[2]}"
    tags = {"reasrm.manifest_uri": manifest.uri, "reasrm.run_key": "k"}
    model_versions.register_version(name, f"{manifest.uri}/model", None, None, tags, "")
    model_versions.set_alias(name, "champion", "1")
    for reference in (name, f"{name}/1", f"{name}@champion"):
        found = find_model(reference, s3.storage, tmp_path / "copies")
        assert (found.name, found.grammar, found.digest) == (f"{name}/1", "think", manifest.digest)
        assert (found.folder / "config.json").is_file()
    model_versions.tag_version(name, "1", {"reasrm.gate": "rejected", "reasrm.gate_reasons": "too often wrong"})
    find_model(name, s3.storage, tmp_path / "copies")
    assert "which the gate rejected: too often wrong" in caplog.text
    plain = find_model(str(tiny_model), s3.storage, tmp_path / "copies")
    assert (plain.folder, plain.grammar) == (tiny_model, None)

    command = ["judge", "--model", f"{name}@champion", "--pairs", pairs, "--max-tokens", "8", "--dir", tmp_path / "d"]
    command += ["--precision", "fp32"]
    code, _, err = reasrm(*command, "--output", tmp_path / "v.jsonl")
    assert code == 0, err
    rows = read(tmp_path / "v.jsonl")
    assert len(rows) == 3
    assert {(row["verdict"], row["confidence"], row["consistent"], row["score_a"]) for row in rows.values()} == {
        (None, None, None, None)
    }
    assert {row["judge"] for row in rows.values()} == {f"{name}/1"}
    assert "no verdict 3" in err and "truncated 6" in err
    code, _, err = reasrm(*command, "--output", tmp_path / "v.jsonl", "--precision", "bf16")
    assert (code, "another prompt or precision" in err) == (2, True)
