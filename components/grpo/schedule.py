"""The arithmetic of RL steps, and which prompts each one has: the same for any number of processes.

A unit is what never comes apart: a prompt, or the prompts of both orders of a pair. Unit u has the rows
u x unit_size to (u + 1) x unit_size - 1 of the dataset.
"""

import math
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from components.core.errors import InvalidInput
from components.grpo.config import Config


@dataclass(frozen=True)
class Schedule:
    """The units of every RL step, in the order in which they are rolled out."""

    units: tuple[tuple[int, ...], ...]
    unit_size: int
    num_units: int

    @property
    def num_steps(self) -> int:
        """Return the number of RL steps."""
        return len(self.units)

    @property
    def num_left_over(self) -> int:
        """Return how many prompts fill no whole RL step in a pass over them."""
        return self.num_units % len(self.units[0]) * self.unit_size

    def share(self, step: int, rank: int, num_processes: int) -> tuple[tuple[int, ...], int]:
        """Return the units that a process rolls out in an RL step, and the place of the first of them in it."""
        size = len(self.units[step]) // num_processes
        return self.units[step][rank * size : (rank + 1) * size], rank * size

    def rows_of(self, unit: int) -> range:
        """Return the rows of one unit."""
        return range(unit * self.unit_size, (unit + 1) * self.unit_size)


def make_schedule(num_rows: int, config: Config) -> Schedule:
    """Return the schedule of a run: each pass over the units in an order of its own, without what fills no RL step.

    Raises InvalidInput when the prompts do not fill one RL step.
    """
    size = config.unit_size
    num_units, per_step = num_rows // size, config.prompts_per_step // size
    per_pass = num_units // per_step
    if per_pass == 0:
        raise InvalidInput(
            f"{num_rows} prompts can be used, fewer than prompts_per_step {config.prompts_per_step}; lower "
            "prompts_per_step, raise max_prompt_tokens, or give more pairs"
        )
    num_steps = config.steps or per_pass
    units: list[tuple[int, ...]] = []
    for epoch in range(math.ceil(num_steps / per_pass)):
        order = permute(range(num_units), f"{config.seed}/{epoch}")
        units += [tuple(order[start : start + per_step]) for start in range(0, per_pass * per_step, per_step)]
    return Schedule(tuple(units[:num_steps]), size, num_units)


def spares(num_units: int, taken: Collection[int], seed: int, step: int) -> Iterator[int]:
    """Yield the units that may replace others in an RL step: all but those that it has, in an order of its own."""
    taken = set(taken)
    return (unit for unit in permute(range(num_units), f"{seed}/spare/{step}") if unit not in taken)


def permute(units: range, name: str) -> list[int]:
    """Return the units in an order that the name decides; random() alone is the same in every version of Python."""
    draw = random.Random(name)  # noqa: S311
    places = [draw.random() for _ in units]
    return sorted(units, key=places.__getitem__)


def accumulation_steps(config: Config, num_processes: int) -> int:
    """Return how many micro batches of each process make one optimizer step.

    Raises InvalidInput when an RL step cannot be divided so, or when a group or a pair would straddle two processes.
    """
    rollouts = config.prompts_per_step * config.num_generations
    update = config.updates_per_step * config.micro_batch_size * num_processes
    whole = num_processes * config.unit_size
    if rollouts % update == 0 and config.prompts_per_step % whole == 0:
        return rollouts // update
    step = math.lcm(whole, update // math.gcd(update, config.num_generations))
    below = config.prompts_per_step // step * step
    nearest = " or ".join(str(prompts) for prompts in (below, below + step) if prompts)
    raise InvalidInput(
        f"an RL step of prompts_per_step {config.prompts_per_step} x num_generations {config.num_generations} = "
        f"{rollouts} rollouts cannot be shared by {num_processes} processes in updates_per_step "
        f"{config.updates_per_step} x micro batches of {config.micro_batch_size} with whole groups"
        f"{' and pairs' if config.unit_size > 1 else ''} on each; the nearest prompts_per_step that works: {nearest}"
    )
