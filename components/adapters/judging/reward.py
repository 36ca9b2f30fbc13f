"""A reward function for TRL's trainers (GRPO, RLOO and their like) that asks a served pairwise judge.

A pairwise judge has no scalar for one answer alone. Within the group of completions that GRPO samples for one prompt
there is one: how often an answer is preferred to the others. GRPO subtracts the group's mean anyway, so nothing is lost
by a scale that holds within the group only.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from components.adapters.judging.client import JudgeClient, Prompt
from components.core.errors import InvalidInput, ReasrmError
from components.core.ranking import Method

Completion = str | Sequence[dict[str, str]]


class PairwiseReward:
    """Callable as TRL calls rewards: `(prompts, completions, **columns) -> [reward or None]`.

    All completions of one prompt are ranked against each other by the judge's /rank. Rewards are from 0 to 1. None,
    which TRL leaves out of its sums, is a completion that no judgment with a verdict spoke about. A judge that cannot
    be reached is an error and stops the training (which goes on from its checkpoint): it never becomes a reward.
    """

    __name__ = "pairwise_judge"  # what TRL calls it in logs

    def __init__(
        self,
        url: str,
        *,
        token_env: str = "",
        method: Method = "round_robin",
        votes: int | None = None,
        concurrency: int = 8,
        call_seconds: float = 600.0,
        patience_seconds: float = 900.0,
    ) -> None:
        """`votes` None takes the server's; `concurrency` groups are asked about at once."""
        self.client = JudgeClient(url, token_env, call_seconds, patience_seconds)
        self.method, self.votes, self.concurrency = method, votes, concurrency
        self.num_judgments = 0

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """Return a reward for each completion.

        Raises:
            InvalidInput: a prompt has one completion, or the judge refuses a request.
            Transient: the judge does not answer.
        """
        groups = _groups(prompts)
        alone = next((places[0] for places in groups if len(places) < 2), None)
        if alone is not None:
            raise InvalidInput(
                f"completion {alone} is the only one of its prompt in this batch, so there is nothing to compare it "
                "with; set num_generations to 2 or more, and per_device_train_batch_size to a multiple of it"
            )
        rewards: list[float | None] = [None] * len(completions)
        with ThreadPoolExecutor(self.concurrency) as pool:
            found = pool.map(
                lambda places: self._rank(prompts[places[0]], [_text(completions[place]) for place in places]), groups
            )
            for places, (scores, num_judgments) in zip(groups, found, strict=True):
                self.num_judgments += num_judgments
                for place, score in zip(places, scores, strict=True):
                    rewards[place] = score
        return rewards

    def _rank(self, prompt: Prompt, answers: list[str]) -> tuple[list[float | None], int]:
        answer = self.client.rank(prompt, answers, self.method, self.votes)
        scores = answer.get("rewards")
        if not isinstance(scores, list) or len(scores) != len(answers):
            raise ReasrmError(f"the judge at {self.client.url} gave no rewards for {len(answers)} answers")
        num_judgments = int(answer.get("cost", {}).get("judgments", 0))
        return [None if score is None else float(score) for score in scores], num_judgments


def _groups(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the places of equal prompts, which stand side by side; a prompt that comes again later is a new group."""
    groups: list[list[int]] = []
    for place, prompt in enumerate(prompts):
        if groups and prompts[groups[-1][0]] == prompt:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _text(completion: Completion) -> str:
    """Return the text of a completion in either of TRL's forms, without the reasoning turn's other fields."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message["content"]) for message in completion if message.get("content"))
