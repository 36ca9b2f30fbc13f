"""Held-out pairs judged while the policy trains, across kills; and what stops a policy that has collapsed."""

import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from components.adapters import ranks
from components.adapters.engines import Completion, Sampling
from components.adapters.progress import Progress
from components.adapters.stage import Output, Stopped
from components.core.errors import InvalidInput, Transient
from components.core.schema import Message, PreferencePair
from components.grpo.collapse import StopOnCollapse, find
from components.grpo.config import Config, EvaluationSettings, StopSettings
from components.grpo.evaluation import HeldOut, split_for_evaluation, with_evaluations


def make_pair(name: str, cluster: str = "", size: int = 0) -> PreferencePair:
    return PreferencePair(
        id=name, prompt=(Message(role="user", content=f"<{name}>" + " x" * size),), response_a="good", response_b="bad",
        label="A", cluster=cluster,
    )  # fmt: skip


def pairs_of(*names: str) -> list[PreferencePair]:
    return [make_pair(name) for name in names]


# Which pairs


def test_whole_clusters_are_held_out_and_the_rest_is_trained_on() -> None:
    pairs = [make_pair(f"p{number}", f"c{number // 3}" if number < 30 else "") for number in range(60)]
    train, held_out = split_for_evaluation(pairs, 20, seed=1)
    assert sorted(pair.id for pair in train + held_out) == sorted(pair.id for pair in pairs)
    assert 18 <= len(held_out) <= 20
    assert not {pair.cluster for pair in train} & {pair.cluster for pair in held_out if pair.cluster}
    assert [pair for pair in pairs if pair in held_out] == held_out
    assert [pair for pair in pairs if pair in train] == train


def test_the_choice_depends_on_names_and_seed_alone() -> None:
    pairs = [make_pair(f"p{number}") for number in range(40)]
    chosen = {pair.id for pair in split_for_evaluation(pairs, 10, seed=1)[1]}
    assert chosen == {pair.id for pair in split_for_evaluation(pairs[::-1], 10, seed=1)[1]}
    assert chosen == {pair.id for pair in split_for_evaluation([p.shown(True) for p in pairs], 10, seed=1)[1]}
    assert chosen != {pair.id for pair in split_for_evaluation(pairs, 10, seed=2)[1]}
    more = [*pairs, *(make_pair(f"q{number}") for number in range(4))]
    assert len(chosen & {pair.id for pair in split_for_evaluation(more, 10, seed=1)[1]}) >= 6


@pytest.mark.parametrize(("num", "clusters"), [(5, ["one"] * 8), (7, [""] * 8), (8, [""] * 8)])
def test_a_split_that_leaves_too_little_is_refused(num: int, clusters: list[str]) -> None:
    pairs = [make_pair(f"p{number}", cluster) for number, cluster in enumerate(clusters)]
    with pytest.raises(InvalidInput, match=rf"evaluation.pairs is {num}: \d of 8 RL pairs"):
        split_for_evaluation(pairs, num, seed=0)


# What is measured


RIGHT, WRONG, NONE, LONG = "right", "wrong", "none", "long"


class Script:
    """Stands where the policy would write: what it says of a pair in an order is looked up."""

    def __init__(self, says: Callable[[str, bool], str]) -> None:
        self.says = says
        self.asked: list[tuple[str, bool]] = []
        self.sampling: set[Sampling] = set()

    def encode(self, prompt: Sequence[Message]) -> list[int]:
        return list(prompt[-1].content.encode())

    def sample_until_stopped(
        self, prompts: Sequence[list[int]], sampling: Sequence[Sampling], *, measured: bool
    ) -> Sequence[Completion]:
        assert not measured  # the clock of evaluations runs already
        torch.rand(len(prompts))  # generation draws, and training must not notice
        self.sampling.update(sampling)
        return [self._judge(bytes(ids).decode()) for ids in prompts]

    def _judge(self, text: str) -> Completion:
        name, swapped = text.partition("<")[2].partition(">")[0], text.index("bad") < text.index("good")
        self.asked.append((name, swapped))
        said = self.says(name, swapped)
        right = "B" if swapped else "A"
        letter = {RIGHT: right, WRONG: "A" if swapped else "B"}.get(said, "C")
        return Completion(f"<answer>[[{letter}]]</answer>", truncated=said == LONG, num_tokens=9 if said == LONG else 3)


class Tracking:
    """Keeps what MLflow would get."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((step, dict(metrics)))


def make_output(tmp_path: Path) -> Output:
    tracking: Any = Tracking()
    storage: Any = None
    return Output("s3://b/grpo", tmp_path, tmp_path, storage, tracking, Progress("grpo"), "key")


def make_config(every: int = 1, updates: int = 1, **more: Any) -> Config:
    return Config(
        prompts_per_step=2, num_generations=2, micro_batch_size=1, updates_per_step=updates, max_completion_tokens=40,
        evaluation=EvaluationSettings(every=every, pairs=4, keep=more.pop("keep", "last")), **more,
    )  # fmt: skip


def make_held_out(
    tmp_path: Path, script: Any, pairs: Sequence[PreferencePair], config: Config | None = None, **more: Any
) -> HeldOut:
    return HeldOut(pairs, script, config or make_config(), make_output(tmp_path), **more)


def make_state(step: int = 0, log: Sequence[dict[str, Any]] = ()) -> Any:
    return SimpleNamespace(global_step=step, max_steps=10, log_history=list(log), best_metric=None)


def test_every_pair_is_judged_greedily_in_both_orders(tmp_path: Path) -> None:
    table = {
        ("strict", False): RIGHT, ("strict", True): RIGHT,
        ("steady", False): WRONG, ("steady", True): WRONG,
        ("first", False): RIGHT, ("first", True): WRONG,
        ("silent", False): LONG, ("silent", True): NONE,
    }  # fmt: skip
    script = Script(lambda name, swapped: table[name, swapped])
    held_out = make_held_out(
        tmp_path, script, [make_pair("strict").shown(True), *pairs_of("steady", "first", "silent")]
    )
    state = make_state()
    held_out.on_train_begin(None, state, None)
    expected = {
        "eval.strict_accuracy": 1 / 4,
        "eval.accuracy": 3 / 8,
        "eval.valid_rate": 6 / 8,
        "eval.consistent_rate": 2 / 4,
        "eval.truncated_rate": 1 / 8,
        "eval.completion_tokens": 30 / 8,
    }
    assert held_out.rows == state.log_history == [{"step": 0, **expected}]
    assert held_out.output.tracking.logged == [(0, expected)]  # type: ignore[attr-defined]
    assert sorted(script.asked) == sorted(table)
    assert script.sampling == {Sampling(40, 0.0, loop_tokens=512)}
    assert state.best_metric is None  # what training starts from is no checkpoint of it


def test_pairs_that_are_over_long_in_an_order_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = Script(lambda name, swapped: RIGHT)
    pairs = [make_pair("long", size=300), make_pair("short")]
    held_out = make_held_out(tmp_path, script, pairs, make_config(max_prompt_tokens=500))
    held_out.on_train_begin(None, make_state(), None)
    assert script.asked == [("short", False), ("short", True)]
    assert "1 of 2 held-out pairs are over 500 tokens" in caplog.text
    with pytest.raises(InvalidInput, match="all held-out pairs are over max_prompt_tokens 500"):
        make_held_out(tmp_path, script, pairs[:1], held_out.config).on_train_begin(None, make_state(), None)


# When, in a real trainer


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"x": torch.full((4,), float(place % 7))}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(self.dropout(x)).pow(2).mean()}


class LoggingTrainer(Trainer):  # type: ignore[misc]
    kl: Callable[[int], float] = staticmethod(lambda step: 0.0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "kl": self.kl(self.state.global_step), "valid_rate": 1.0}, start_time)


def make_trainer(folder: Path, callbacks: Sequence[Any], steps: int = 8) -> Any:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=4, logging_steps=2, per_device_train_batch_size=2,
        use_cpu=True, report_to=[], disable_tqdm=True, learning_rate=1e-2, seed=3,
    )  # fmt: skip
    return LoggingTrainer(model=Model(), args=arguments, train_dataset=Rows(), callbacks=list(callbacks))


GAINS = {0: 0.5, 1: 0.25, 2: 0.75, 3: 0.75, 4: 0.5}
"""Strict accuracy of four pairs after each RL step of two updates; the best one first comes at step 2."""


def policy(trainer: Any) -> Callable[[str, bool], str]:
    """It judges as many of the pairs 0 to 3 rightly as the step says."""
    return lambda name, swapped: RIGHT if int(name) < 4 * GAINS[trainer[0].state.global_step // 2] else WRONG


def run(tmp_path: Path, name: str, resume: str | None = None, **more: Any) -> tuple[HeldOut, Any]:
    trainers: list[Any] = []
    script = Script(policy(trainers))
    script.sample_until_stopped = more.pop("wrap", lambda sample, trainers: sample)(  # type: ignore[method-assign]
        script.sample_until_stopped, trainers
    )
    held_out = make_held_out(tmp_path, script, pairs_of("0", "1", "2", "3"), make_config(updates=2), **more)
    trainers.append(make_trainer(tmp_path / name, [held_out]))
    trainers[0].train(resume_from_checkpoint=resume and str(tmp_path / resume))
    return held_out, trainers[0]


def losses(trainer: Any) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def scores(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: row["eval.strict_accuracy"] for row in rows}


def test_the_best_checkpoint_is_written_and_a_resumed_run_has_the_same_rows(tmp_path: Path) -> None:
    held_out, trainer = run(tmp_path, "whole")
    assert scores(held_out.rows) == GAINS
    assert trainer.state.best_metric == 0.75
    saved = {path.name for path in (tmp_path / "whole").iterdir()}
    assert saved == {"checkpoint-2", "checkpoint-4", "checkpoint-8"}  # 2 was the best then, 8 is the last

    again, resumed = run(tmp_path, "whole", "whole/checkpoint-4")
    assert again.rows == held_out.rows
    assert losses(resumed) == losses(trainer)
    assert resumed.state.best_metric == 0.75
    assert [step for step, _ in again.output.tracking.logged] == [3, 4]  # type: ignore[attr-defined]

    alone = make_trainer(tmp_path / "alone", [])
    alone.train()
    assert losses(alone) == losses(trainer)  # evaluating changes nothing in training


def stopped_at(*steps: int) -> Callable[..., Any]:
    def wrap(sample: Callable[..., Any], trainers: list[Any]) -> Callable[..., Any]:
        def stopping(*args: Any, **kwargs: Any) -> Any:
            if trainers[0].state.global_step in steps:
                raise Stopped("SIGTERM")
            return sample(*args, **kwargs)

        return stopping

    return wrap


def test_an_evaluation_that_sigterm_cut_short_is_made_up_for(tmp_path: Path) -> None:
    cut, trainer = run(tmp_path, "cut", wrap=stopped_at(4))
    assert scores(cut.rows) == {0: 0.5, 1: 0.25, 3: 0.75, 4: 0.5}
    assert len(losses(trainer)) == 4  # the step that ended just then is logged like the others
    with pytest.raises(Transient, match="at the evaluation of step 2, whose checkpoint is in S3"):
        run(tmp_path, "cut", "cut/checkpoint-4", wrap=stopped_at(4))
    rescored: list[tuple[int, float]] = []
    shutil.rmtree(tmp_path / "cut/checkpoint-6")
    again, _ = run(tmp_path, "cut", "cut/checkpoint-4", rescore=lambda step, score: rescored.append((step, score)))
    assert scores(again.rows) == GAINS
    assert rescored == [(4, 0.75)]
    assert not (tmp_path / "cut/checkpoint-6").exists()
    without, _ = run(tmp_path, "cut", "cut/checkpoint-4")
    assert scores(without.rows) == GAINS
    assert (tmp_path / "cut/checkpoint-6").is_dir()  # the best that has a score


def test_a_stop_before_the_first_step_has_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(Transient, match="before the first step"):
        run(tmp_path, "none", wrap=stopped_at(0))


@pytest.mark.parametrize(("keep", "saved"), [("last", False), ("best", True)])
def test_the_last_step_is_saved_only_where_it_is_looked_for(tmp_path: Path, keep: str, saved: bool) -> None:
    script = Script(lambda name, swapped: RIGHT)
    held_out = make_held_out(tmp_path, script, pairs_of("0"), make_config(keep=keep))
    state, control = make_state(step=10), SimpleNamespace(should_save=False, should_training_stop=True)
    held_out.on_step_end(None, state, control)
    assert (scores(held_out.rows), control.should_save) == ({10: 1.0}, saved)


def test_nothing_is_judged_between_evaluations_or_when_training_is_being_stopped(tmp_path: Path) -> None:
    script = Script(lambda name, swapped: RIGHT)
    held_out = make_held_out(tmp_path, script, pairs_of("0"), make_config(every=2, updates=2))
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    for step in (1, 2, 3):
        held_out.on_step_end(None, make_state(step), control)
    held_out.on_step_end(None, make_state(4), SimpleNamespace(should_save=False, should_training_stop=True))
    assert script.asked == []
    held_out.on_step_end(None, make_state(4), control)
    assert scores(held_out.rows) == {2: 1.0}


@pytest.mark.parametrize(("in_s3", "saved"), [(None, True), ((2, 0.25), True), ((2, 1.0), False)])
def test_the_best_is_what_s3_has_not_what_an_earlier_run_remembers(
    tmp_path: Path, in_s3: tuple[int, float] | None, saved: bool
) -> None:
    script = Script(lambda name, swapped: RIGHT if name == "a" else WRONG)
    held_out = make_held_out(tmp_path, script, pairs_of("a", "b"), best=lambda: in_s3)
    state = make_state(3, [{"step": 3, "eval.strict_accuracy": 0.9}])
    state.best_metric = 0.9
    held_out.on_train_begin(None, state, None)
    state.global_step, control = 4, SimpleNamespace(should_save=False, should_training_stop=False)
    held_out.on_step_end(None, state, control)
    assert held_out.rows[-1]["eval.strict_accuracy"] == 0.5
    assert control.should_save is saved


def test_evaluations_stand_on_the_rows_of_their_steps() -> None:
    log = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    rows = [{"step": 0, "eval.accuracy": 0.5}, {"step": 2, "eval.accuracy": 0.75}]
    assert with_evaluations(log, rows) == [
        {"step": 0, "eval.accuracy": 0.5},
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "eval.accuracy": 0.75},
    ]


OTHER_PROCESS = """
import sys
import test_grpo_evaluation as own
own.judge_together(sys.argv[1])
"""


def judge_together(folder: str) -> tuple[list[dict[str, Any]], int]:
    script = Script(lambda name, swapped: RIGHT if name == "0" or swapped else LONG)
    held_out = make_held_out(Path(folder), script, pairs_of("0", "1", "2"))
    if ranks.world_size() > 1:
        torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=ranks.rank(), world_size=2)
    held_out.on_train_begin(None, make_state(), None)
    return held_out.rows, len(script.asked)


def test_processes_share_the_pairs_and_see_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, num_alone = judge_together(str(tmp_path))
    here = Path(__file__)
    place = {
        **os.environ, "WORLD_SIZE": "2", "RANK": "1", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parent)]),
    }  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, str(tmp_path)], env=place)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    try:
        together, num_own = judge_together(str(tmp_path))
    finally:
        torch.distributed.destroy_process_group()
    assert other.wait(timeout=400) == 0
    assert (together, num_alone, num_own) == (alone, 6, 3)


# What stops a policy


def log_of(name: str, values: Sequence[float | None]) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 0.0, name: value} for step, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("bound", "limit", "measure", "good", "bad", "shown"),
    [
        ("max_kl", 0.5, "kl", 0.5, 0.6, "kl was over stop.max_kl = 0.5 in all RL steps from 2 to 3: 0.6, 0.6"),
        (
            "min_entropy",
            0.1,
            "entropy",
            0.1,
            0.05,
            "entropy was under stop.min_entropy = 0.1 in all RL steps from 2 to",
        ),
        ("max_entropy", 2, "entropy", 2, 3, "entropy was over stop.max_entropy = 2"),
        ("min_completion_tokens", 50, "completions/mean_length", 50, 49, "completion_tokens was under"),
        ("min_completion_tokens", 50, "completion_tokens", 50, 49, "completion_tokens was under"),
        ("max_invalid_rate", 0.25, "valid_rate", 0.75, 0.5, "invalid_rate was over stop.max_invalid_rate = 0.25"),
        ("max_truncated_rate", 0.5, "completions/clipped_ratio", 0.5, 0.75, "truncated_rate was over"),
        ("max_truncated_rate", 0.5, "truncated_rate", 0.5, 0.75, "truncated_rate was over"),
    ],
)
def test_each_bound_stops_what_stays_beyond_it(
    bound: str, limit: float, measure: str, good: float, bad: float, shown: str
) -> None:
    stop = StopSettings.model_validate({bound: limit, "patience": 2})
    found = find(log_of(measure, [good, bad, bad, bad]), stop, 1)
    assert found is not None
    assert (found.bound, found.since, found.step) == (bound, 2, 3)
    assert str(found).startswith(shown)
    assert find(log_of(measure, [good, bad, good, bad, good]), stop, 1) is None
    assert find(log_of(measure, [good] * 9), stop, 1) is None
    for broken in (math.nan, math.inf, None):
        assert find(log_of(measure, [broken, broken]), stop, 1) is not None


def test_without_bounds_nothing_stops_and_nothing_is_asked_for() -> None:
    assert find([{"step": 1, "loss": 0.0}], StopSettings(), 1) is None


def test_a_bound_on_what_is_not_measured_is_an_error() -> None:
    with pytest.raises(InvalidInput, match=r"stop\.max_kl looks at kl, which the log of this run does not have"):
        find([{"step": 1, "loss": 0.0}], StopSettings(max_kl=1), 1)


def test_an_rl_step_of_several_updates_counts_once_and_when_it_is_over() -> None:
    stop = StopSettings(max_kl=0.5, patience=1)
    assert find(log_of("kl", [0, 0, 0.9]), stop, 2) is None  # step 2 is not over
    found = find(log_of("kl", [0, 0, 0.9, 0.3, 9, 9]), stop, 2)
    assert found is not None
    assert (found.since, found.step, found.values) == (2, 2, (pytest.approx(0.6),))
    assert find([{"step": 2, "loss": 0.0, "kl": 0.9}, {"step": 4, "eval.accuracy": 1.0}], stop, 2) is not None


def test_a_collapse_ends_training_and_is_known_again_after_a_kill(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train(resume: str | None = None) -> tuple[StopOnCollapse, HeldOut, Any]:
        stop = StopOnCollapse(StopSettings(max_kl=0.5, patience=2), 2)
        held_out = make_held_out(tmp_path, Script(lambda name, swapped: RIGHT), pairs_of("0"), make_config(updates=2))
        trainer = make_trainer(tmp_path / "run", [stop, held_out], steps=40)
        trainer.kl = lambda step: 1.0 if step > 4 else 0.0
        trainer.train(resume_from_checkpoint=resume)
        return stop, held_out, trainer

    with caplog.at_level(logging.WARNING, logger="components.grpo.collapse"):
        stop, held_out, trainer = train()
    assert trainer.state.global_step == 8  # RL steps 3 and 4 were beyond the bound
    assert stop.reason == "kl was over stop.max_kl = 0.5 in all RL steps from 3 to 4: 1, 1"
    assert caplog.text.count("training stops: kl was over") == 1
    assert (tmp_path / "run/checkpoint-8").is_dir()

    again, evaluated, resumed = train(str(tmp_path / "run/checkpoint-4"))
    assert (again.reason, resumed.state.global_step) == (stop.reason, 8)
    assert evaluated.rows == held_out.rows

    late, evaluated, resumed = train(str(tmp_path / "run/checkpoint-8"))  # killed after it had stopped
    assert late.reason == stop.reason
    assert late.collapse is not None
    assert late.collapse.step == 4
    assert resumed.state.global_step == 9
    assert evaluated.rows == held_out.rows
