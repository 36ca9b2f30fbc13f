"""The rewards of `core.rewards` as TRL calls them: one function each, over one reading of the batch."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, get_args

from components.adapters import ranks
from components.core.errors import ReasrmError
from components.core.rewards import RewardSettings, Rollout, count, pooled, rates, score
from components.core.schema import Label
from components.core.verdict import Grammar

RewardFunction = Callable[..., list[float]]
LOGGED = ("valid_rate", "accuracy", "consistent_rate")


def functions(
    settings: RewardSettings, max_tokens: int, end_ids: Callable[[], Collection[int]], *, grammar: Grammar
) -> tuple[list[RewardFunction], list[float]]:
    """Return TRL's reward functions, each named after its reward, and their weights.

    They need the columns label, unit and swapped. `end_ids` are the end-of-turn tokens: a completion that ends with
    none of them was cut off. With every batch the shares of `LOGGED` are logged, over all processes; every process has
    to call the functions equally often. What goes wrong in them is raised: it never becomes a reward.
    """
    batches = _Batches(settings, max_tokens, end_ids, grammar)
    return [_named(name, batches) for name in settings.weights], list(settings.weights.values())


def _named(name: str, batches: "_Batches") -> RewardFunction:
    def reward(**batch: Any) -> list[float]:
        return batches.scores(name, batch)

    reward.__name__ = name  # what TRL logs it as
    return reward


class _Batches:
    """Scores the batch that TRL hands to one function after the other once, for all of them."""

    def __init__(
        self, settings: RewardSettings, max_tokens: int, end_ids: Callable[[], Collection[int]], grammar: Grammar
    ) -> None:
        self.settings = settings
        self.max_tokens = max_tokens
        self.end_ids = end_ids
        self.grammar = grammar
        self._of: Any = None
        self._scores: dict[str, list[float]] = {}

    def scores(self, name: str, batch: dict[str, Any]) -> list[float]:
        """Return one reward of the batch; the batch is known again by the very list of its completions.

        The list is held while rewards of it are wanted, so that no other one can take its place in memory, and each
        reward is given out once: the next call with the same list is a new batch.
        """
        if self._of is not batch["completion_ids"] or name not in self._scores:
            self._scores = self._score(batch)
            self._of = batch["completion_ids"]
        found = self._scores.pop(name)
        if not self._scores:
            self._of = None
        return found

    def _score(self, batch: dict[str, Any]) -> dict[str, list[float]]:
        rollouts = _rollouts(batch, self.end_ids())
        votes = pooled(ranks.gather(count(rollouts)))  # a pair's two orders may lie on two processes
        shares = rates(votes)
        for name in LOGGED:
            if name in shares:
                batch["log_metric"](name, shares[name])
        return score(rollouts, self.settings, self.max_tokens, grammar=self.grammar, votes=votes)


def _rollouts(batch: dict[str, Any], end_ids: Collection[int]) -> list[Rollout]:
    """Read a batch. Raises ReasrmError for a row without a label, which would count as wrong for ever."""
    columns: Sequence[Sequence[Any]] = [batch[name] for name in ("label", "unit", "swapped")]
    found = []
    for completion, ids, label, unit, swapped in zip(
        batch["completions"], batch["completion_ids"], *columns, strict=True
    ):
        if label not in get_args(Label):
            raise ReasrmError(f"the row of pair {unit!r} has the label {label!r}, which is neither A nor B")
        cut_off = not ids or ids[-1] not in end_ids
        found.append(Rollout(completion[0]["content"], cut_off, len(ids), label, unit, bool(swapped)))
    return found
