"""The rollouts of one RL step, with fresh pairs in place of those that nothing can be learnt from."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from components.adapters import ranks
from components.adapters.engines import Sampling, seed_of
from components.core.rewards import Rollout, count, pooled, score, total
from components.core.schema import Message
from components.grpo.config import Config
from components.grpo.rollouts import Drawn, PolicySampler
from components.grpo.schedule import Schedule, spares

SAME = 1e-6
"""Rewards that differ by less are equal; sums of the same weights in another order differ by far less than this."""


@dataclass(frozen=True)
class Group:
    """A prompt and its rollouts."""

    row: Mapping[str, Any]
    prompt_ids: list[int]
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class Unit:
    """The groups of one unit; `place` is where it stands in the RL step, over all processes."""

    number: int
    place: int
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Counts:
    """What the rollout of one RL step came to, over all processes; rates are shares of its groups or rollouts."""

    num_drawn: int
    num_tokens: int
    num_replaced: int
    drawn_no_signal_rate: float
    no_signal_rate: float
    completion_tokens: float
    truncated_rate: float


class Drawing:
    """Rolls out RL steps. What it draws depends on the step and the seed, not on how many processes share it."""

    def __init__(self, config: Config, rows: Dataset, schedule: Schedule, sampler: PolicySampler) -> None:
        self.config = config
        self.rows = rows
        self.schedule = schedule
        self.sampler = sampler

    def roll_out(self, step: int, numbers: Sequence[int], first_place: int) -> tuple[list[Unit], Counts]:
        """Return this process's share of an RL step; `numbers` are its units, the first of them at `first_place`.

        A unit whose groups all have equal rewards is replaced by one that this step does not have, up to
        `resample_rounds` times. All processes agree on which units are fresh, so none is drawn twice.
        """
        units = self._draw(step, 0, list(enumerate(numbers, first_place)))
        silent = self._silent(units)
        first_silent, num_drawn, num_replaced = silent, self._num_rollouts(units), 0
        fresh = spares(self.schedule.num_units, self.schedule.units[step], self.config.seed, step)
        for attempt in range(1, self.config.resample_rounds + 1):
            wanted = [place for place, groups in silent.items() if len(groups) == self.schedule.unit_size]
            given = dict(zip(sorted(itertools.chain(*ranks.gather(wanted))), fresh, strict=False))
            if not given:
                break
            replaced = {
                unit.place: unit for unit in self._draw(step, attempt, [(p, given[p]) for p in wanted if p in given])
            }
            num_drawn += self._num_rollouts(list(replaced.values()))
            num_replaced += len(replaced)
            units = [replaced.get(unit.place, unit) for unit in units]
            silent = self._silent(units)
        return units, self._count(units, num_drawn, num_replaced, first_silent, silent)

    def _draw(self, step: int, attempt: int, wanted: Sequence[tuple[int, int]]) -> list[Unit]:
        """Return the units (place, number), each rollout drawn from a seed of its own."""
        config, size = self.config, self.schedule.unit_size
        found: list[tuple[int, int, list[tuple[Mapping[str, Any], list[int]]]]] = []
        prompts: list[list[int]] = []
        sampling: list[Sampling] = []
        for place, number in wanted:
            groups = []
            for offset, index in enumerate(self.schedule.rows_of(number)):
                row = self.rows[index]
                ids = self.sampler.encode([Message.model_validate(message) for message in row["prompt"]])
                groups.append((row, ids))
                for generation in range(config.num_generations):
                    rollout = (place * size + offset) * config.num_generations + generation
                    seed = seed_of(f"{config.seed}/{step}/{attempt}/{rollout}")
                    prompts.append(ids)
                    sampling.append(Sampling(config.max_completion_tokens, config.temperature, seed))
            found.append((place, number, groups))
        drawn = iter(self.sampler.sample_until_stopped(prompts, sampling))
        return [
            Unit(number, place, tuple(Group(row, ids, self._next(drawn)) for row, ids in groups))
            for place, number, groups in found
        ]

    def _next(self, drawn: Iterator[Drawn]) -> tuple[Drawn, ...]:
        return tuple(next(drawn) for _ in range(self.config.num_generations))

    def _silent(self, units: Sequence[Unit]) -> dict[int, list[int]]:
        """Return by place which groups of a unit have equal rewards, and so no advantage, for units that have some."""
        config = self.config
        rollouts = [
            Rollout(
                one.text, one.truncated, one.num_tokens, group.row["label"], group.row["unit"], group.row["swapped"]
            )
            for unit in units
            for group in unit.groups
            for one in group.drawn
        ]
        votes = pooled(ranks.gather(count(rollouts)))
        scores = score(rollouts, config.rewards, config.max_completion_tokens, grammar=config.grammar, votes=votes)
        totals = iter(total(scores, config.rewards))
        silent: dict[int, list[int]] = {}
        for unit in units:
            for offset, group in enumerate(unit.groups):
                rewards = [next(totals) for _ in group.drawn]
                if max(rewards) - min(rewards) < SAME:
                    silent.setdefault(unit.place, []).append(offset)
        return silent

    def _num_rollouts(self, units: Sequence[Unit]) -> int:
        return len(units) * self.schedule.unit_size * self.config.num_generations

    def _count(
        self,
        units: Sequence[Unit],
        num_drawn: int,
        num_replaced: int,
        first_silent: Mapping[int, list[int]],
        silent: Mapping[int, list[int]],
    ) -> Counts:
        kept = [(len(g.prompt_ids), one) for unit in units for g in unit.groups for one in g.drawn]
        own = (
            num_drawn,
            sum(num_prompt + one.num_tokens for num_prompt, one in kept),
            num_replaced,
            sum(map(len, first_silent.values())),
            sum(map(len, silent.values())),
            sum(one.num_tokens for _, one in kept),
            sum(one.truncated for _, one in kept),
        )
        drawn, tokens, replaced, first, last, written, truncated = (
            sum(column) for column in zip(*ranks.gather(own), strict=True)
        )
        groups = self.config.prompts_per_step
        kept_all = groups * self.config.num_generations
        return Counts(drawn, tokens, replaced, first / groups, last / groups, written / kept_all, truncated / kept_all)
