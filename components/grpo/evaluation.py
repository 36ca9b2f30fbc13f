"""How the policy judges pairs that it is never trained on, every so many RL steps."""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from components.adapters import ranks, training
from components.adapters.engines import Sampling
from components.adapters.stage import Output, Stopped
from components.core import prompts
from components.core.errors import InvalidInput, Transient
from components.core.rewards import Rollout, count, pooled, rates
from components.core.schema import PreferencePair
from components.grpo.config import Config

if TYPE_CHECKING:
    from components.grpo.rollouts import PolicySampler

logger = logging.getLogger(__name__)

SCORE = "eval.strict_accuracy"
"""What tells the best checkpoint: the share of pairs that are judged rightly in both orders."""
LOOP_TOKENS = 512
"""A judgment that repeats itself for so many tokens is ended, as in the benchmark."""


def split_for_evaluation(
    pairs: Sequence[PreferencePair], num: int, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return the pairs to train on and up to `num` to evaluate on, both in the order given.

    Whole clusters (near-equal prompts) are taken in a random order that depends on nothing but their names and the
    seed; one that is larger than what is still wanted stays in training. All come from the RL part: the benchmark's
    held-out part is never touched. Raises InvalidInput when that leaves no pairs to evaluate on, or fewer to train on.
    """
    clusters: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        clusters.setdefault(pair.cluster or pair.id, []).append(place)
    chosen: set[int] = set()
    for name in sorted(clusters, key=lambda name: hashlib.sha256(f"{seed}\0evaluation\0{name}".encode()).digest()):
        if len(chosen) + len(clusters[name]) <= num:
            chosen.update(clusters[name])
    if not chosen or len(chosen) > len(pairs) // 2:
        raise InvalidInput(
            f"evaluation.pairs is {num}: {len(chosen)} of {len(pairs)} RL pairs in {len(clusters)} clusters would be "
            "held out, which has to be at least one and at most half of them; change evaluation.pairs, or give more "
            "pairs"
        )
    train = [pair for place, pair in enumerate(pairs) if place not in chosen]
    return train, [pair for place, pair in enumerate(pairs) if place in chosen]


class HeldOut(TrainerCallback):
    """Evaluates before the first RL step and then every `evaluation.every` of them.

    `rows` are what came out, one row an evaluation, with its RL step. They live in the trainer's log history, so a
    checkpoint has them and a resumed run goes on with them. The best so far, the start apart, is the trainer's best
    metric, and its checkpoint is written. All processes see the same numbers. It belongs behind the callbacks of
    `training` and behind `StopOnCollapse`.
    """

    def __init__(
        self,
        pairs: Sequence[PreferencePair],
        sampler: "PolicySampler",
        config: Config,
        output: Output,
        rescore: Callable[[int, float], object] | None = None,
        best: Callable[[], tuple[int, float] | None] | None = None,
    ) -> None:
        """Take `rescore(optimizer step, score)` too: it gives a checkpoint in S3 the score that it lacks.

        SIGTERM leaves a checkpoint without one where it came before the step's evaluation. Then the resumed run has its
        number in `rows`, and without `rescore` that checkpoint is no candidate for the best. `best()` gives optimizer
        step and score of the best checkpoint in S3: what a resumed run remembers may never have got there, or lies
        with the run that it goes on from.
        """
        self.pairs = list(pairs)
        self.sampler = sampler
        self.config = config
        self.output = output
        self.rescore = rescore
        self.best = best
        self.rows: list[dict[str, Any]] = []
        self._asked: list[tuple[list[int], PreferencePair]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate a fresh start, or a resumed step whose evaluation was given up because the process had to stop.

        Raises Transient when it has to stop again: nothing is there that would still have to be saved.
        """
        self.rows = [dict(row) for row in state.log_history if SCORE in row]
        if state.global_step and self.best is not None:
            found = self.best()
            state.best_metric = None if found is None else found[1]
        if not self._is_due(state):
            return
        row = self._evaluate(state, kwargs.get("model"))
        if row is None:
            step = state.global_step // self.config.updates_per_step
            when = f"at the evaluation of step {step}, whose checkpoint is in S3" if step else "before the first step"
            raise Transient(f"stopped by SIGTERM {when}; run again to go on")
        if row["step"] and self.rescore is not None and self._is_best(state, row):
            self.rescore(state.global_step, row[SCORE])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate if an RL step ends here that is to be evaluated; have the checkpoint written if it is the best.

        When training is being stopped early this waits for the run that goes on.
        """
        if control.should_training_stop and state.global_step < state.max_steps:
            return
        row = self._evaluate(state, kwargs.get("model")) if self._is_due(state) else None
        if row is not None and self._is_best(state, row):
            # The last step is the finished model: only where the best is taken from the checkpoints it needs one.
            control.should_save |= state.global_step < state.max_steps or self.config.evaluation.keep == "best"

    def _is_due(self, state: Any) -> bool:
        step, update = divmod(state.global_step, self.config.updates_per_step)
        every = self.config.evaluation.every
        return every > 0 and not update and not step % every and all(row["step"] != step for row in self.rows)

    def _is_best(self, state: Any, row: dict[str, Any]) -> bool:
        """Say whether no earlier checkpoint is as good, and note it.

        The trainer's `best_global_step` stays unset: with it the trainer looks for the best one's folder on this disk,
        and warns a resumed run that it is lost.
        """
        if state.best_metric is not None and row[SCORE] <= state.best_metric:
            return False
        state.best_metric = row[SCORE]
        return True

    def _evaluate(self, state: Any, model: Any) -> dict[str, Any] | None:
        """Return the new row of this step, or None when a process shall stop: the resumed run then evaluates it."""
        step = state.global_step // self.config.updates_per_step
        with training.phases().measure("evaluate"), _undisturbed(model):
            found = self._judge()
        if found is None:
            return None
        row = {"step": step, **{f"eval.{name}": value for name, value in found.items()}}
        self.rows.append(row)
        state.log_history.append(dict(row))
        self.output.tracking.log_metrics({key: value for key, value in row.items() if key != "step"}, step=step)
        self.output.progress.advance(0, note=f"held-out strict accuracy {row[SCORE]:.3f} at step {step}")
        return row

    def _judge(self) -> dict[str, float] | None:
        """Judge all pairs greedily in both orders, each process its share; None when one of them shall stop."""
        own = self._prompts()[ranks.rank() :: ranks.world_size()]
        sampling = Sampling(self.config.max_completion_tokens, loop_tokens=LOOP_TOKENS)
        try:
            # All of it is the phase evaluate, whose clock runs already.
            done = self.sampler.sample_until_stopped([ids for ids, _ in own], [sampling] * len(own), measured=False)
        except Stopped:  # in all processes; the step that has just ended is still to be logged
            return None
        rollouts = [
            Rollout(judged.text, judged.truncated, judged.num_tokens, pair.label, pair.id, pair.swapped)
            for (_, pair), judged in zip(own, done, strict=True)
        ]
        votes = pooled(ranks.gather(count(rollouts)))
        lengths = ranks.gather([(each.num_tokens, each.truncated) for each in rollouts])
        num_tokens, truncated = zip(*itertools.chain(*lengths), strict=True)
        return {
            **rates(votes),
            "truncated_rate": sum(truncated) / len(truncated),
            "completion_tokens": sum(num_tokens) / len(num_tokens),
        }

    def _prompts(self) -> list[tuple[list[int], PreferencePair]]:
        """Return the prompts of both orders of every pair that fits; encoded once."""
        if self._asked:
            return self._asked
        num_too_long = 0
        for pair in self.pairs:
            shown = [pair.shown(swapped) for swapped in (False, True)]
            ids = [self.sampler.encode(prompts.render(each, self.config.grammar).messages) for each in shown]
            if max(map(len, ids)) > self.config.max_prompt_tokens:
                num_too_long += 1
                continue
            self._asked += zip(ids, shown, strict=True)
        if num_too_long:
            limit = self.config.max_prompt_tokens
            logger.warning("%s of %s held-out pairs are over %s tokens: left out", num_too_long, len(self.pairs), limit)
        if not self._asked:
            raise InvalidInput(
                f"all held-out pairs are over max_prompt_tokens {self.config.max_prompt_tokens}; raise it"
            )
        return self._asked


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Leave the random numbers and the mode of the model that trains as they were."""
    import torch

    mode = None if model is None else model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
    if mode is not None:
        model.train(mode)


def with_evaluations(log: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the log of training, one row an RL step, with the evaluations on the rows of their steps.

    What training started from, step 0, has a row of its own.
    """
    found: dict[int, dict[str, Any]] = {}
    for row in (*log, *rows):
        found.setdefault(row["step"], {}).update(row)
    return [found[step] for step in sorted(found)]
