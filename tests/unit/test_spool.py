import json
import math
import posixpath
import re
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from components.adapters.spool import (
    MAX_KEY_CHARS,
    MAX_PARAM_CHARS,
    Op,
    Spool,
    SpoolReader,
    State,
    clean_key,
    cut,
    finite,
    flatten,
    next_batch,
    numeric_leaves,
    read_state,
    reject,
    sole_deliverer,
    write_state,
)


def test_flatten_gives_dotted_keys_and_text():
    values = {"grpo": {"lr": 1e-6, "on": True, "none": None, "sizes": [1, 2], "empty": {}}, "seed": 7}
    assert flatten(values) == {
        "grpo.lr": "1e-06",
        "grpo.on": "True",
        "grpo.none": "None",
        "grpo.sizes": "[1, 2]",
        "grpo.empty": "{}",
        "seed": "7",
    }


@given(st.text(max_size=400))
def test_any_key_becomes_one_that_mlflow_takes(key):
    cleaned = clean_key(key)
    assert re.fullmatch(r"[A-Za-z0-9_\-. :/]{1,250}", cleaned)
    assert posixpath.normpath(cleaned) == cleaned


def test_long_values_are_cut_to_the_limit_and_stay_distinct():
    first, second = flatten({"a": "x" * 9000, "b": "x" * 9001}).values()
    assert len(first) == len(second) == MAX_PARAM_CHARS
    assert first != second
    assert cut("short", 10) == "short"
    keys = {clean_key("k" * 300 + end) for end in "ab"}
    assert len(keys) == 2
    assert {len(key) for key in keys} == {MAX_KEY_CHARS}


def test_metrics_that_are_not_finite_are_counted_and_left_out():
    kept, dropped = finite({"loss": 1, "bad": math.nan, "worse": -math.inf})
    assert kept == {"loss": 1.0}
    assert dropped == 2


def test_numeric_leaves_skip_text_truth_values_lists_and_nan():
    statistics = {"rows": 3, "yield": {"kept": 0.5, "why": "x", "ok": True}, "list": [1], "nan": math.nan}
    assert numeric_leaves(statistics, "stat.") == {"stat.rows": 3.0, "stat.yield.kept": 0.5}


def test_the_reader_gets_each_operation_once_and_in_order(tmp_path):
    spool, reader = Spool.open(tmp_path), SpoolReader(tmp_path, acked=0)
    assert reader.read() == []
    spool.append("tags", {"tags": {"a": "line\nbreak\u2028"}})
    spool.append("tags", {"tags": {"b": "2"}})
    assert [(op.seq, op.data["tags"]) for op in reader.read()] == [(1, {"a": "line\nbreak\u2028"}), (2, {"b": "2"})]
    assert reader.read() == []
    spool.append("finish", {"status": "FINISHED"})
    assert [op.seq for op in reader.read()] == [3]
    assert [op.seq for op in SpoolReader(tmp_path, acked=2).read()] == [3]


def test_a_line_torn_by_a_kill_is_dropped_and_its_number_used_again(tmp_path):
    Spool.open(tmp_path).append("tags", {"tags": {}})
    with (tmp_path / "ops.jsonl").open("ab") as file:
        file.write(b'{"seq": 2, "kind": "met')
    assert [op.seq for op in SpoolReader(tmp_path, acked=0).read()] == [1]
    assert Spool.open(tmp_path).append("tags", {"tags": {}}).seq == 2
    assert [op.seq for op in SpoolReader(tmp_path, acked=0).read()] == [1, 2]


def test_a_delivered_spool_starts_empty_but_goes_on_counting(tmp_path):
    Spool.open(tmp_path).append("artifact", {"name": "a"}, {"a": b"content"})
    write_state(tmp_path, State(acked=1))
    spool = Spool.open(tmp_path)
    assert not (tmp_path / "ops.jsonl").exists()
    assert not (tmp_path / "files").exists()
    assert spool.append("tags", {"tags": {}}).seq == 2


def test_a_spool_that_is_being_delivered_is_not_emptied(tmp_path):
    Spool.open(tmp_path).append("tags", {"tags": {}})
    write_state(tmp_path, State(acked=1))
    with sole_deliverer(tmp_path, 0) as alone, sole_deliverer(tmp_path, 0) as second:
        assert (alone, second) == (True, False)
        Spool.open(tmp_path)
    assert (tmp_path / "ops.jsonl").exists()


def test_state_survives_and_counts_what_was_refused(tmp_path):
    assert read_state(tmp_path) == State()
    state = reject(tmp_path, Op(4, "scores", 0, {}), "no such model", State(acked=3, run_id="r"))
    write_state(tmp_path, state)
    assert read_state(tmp_path) == State(acked=3, run_id="r", rejected=1)
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["reason"] == "no such model"


def metrics(seq: int, count: int) -> Op:
    return Op(seq, "metrics", 0, {"metrics": {f"m{i}": 1.0 for i in range(count)}, "step": seq})


def test_a_batch_ends_at_another_kind_and_at_the_limits_of_a_request():
    small = [metrics(1, 2), Op(2, "params", 0, {"params": {"a": "1"}}), Op(3, "finish", 0, {}), metrics(4, 1)]
    assert [op.seq for op in next_batch(small)] == [1, 2]
    assert [op.seq for op in next_batch(small[2:])] == [3]
    assert [op.seq for op in next_batch([metrics(i, 400) for i in range(5)])] == [0, 1]
    params = [Op(i, "params", 0, {"params": {f"p{j}": "" for j in range(60)}}) for i in range(3)]
    assert [op.seq for op in next_batch(params)] == [0]


def test_a_stage_that_tracks_does_not_import_mlflow():
    code = "import sys, components.adapters.tracking; sys.exit('mlflow' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
