"""Micro batches of a scored rollout: as narrow as their longest row, in an order that no process count changes.

TRL pads all rollouts of a step to the longest one. Lengths differ much between judgments, so most of a step would be
spent on padding; here it is cut off before the model sees it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

PROMPT_KEYS = ("prompt_ids", "prompt_mask")


def split(
    scored: dict[str, Any],
    num_updates: int,
    size: int,
    *,
    together: Sequence[int],
    by_length: bool,
    multiple: int | None,
) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Return the micro batches, those of the first update first, and which rollouts each has.

    `together` is how `deal` shares the rollouts out to the updates. `by_length` puts rollouts of like length together,
    the longest first; it must not be asked for where a loss weighs micro batches equally, because then it would weigh
    the tokens of short rollouts more. Widths are multiples of `multiple`.
    """
    lengths = (scored["prompt_mask"].sum(1) + scored["completion_mask"].sum(1)).tolist()
    places: list[list[int]] = []
    for dealt in deal(len(lengths), num_updates, together):
        if by_length:
            dealt.sort(key=lambda place: (-lengths[place], place))
        places += [dealt[start : start + size] for start in range(0, len(dealt), size)]
    return [_take(scored, chosen, multiple) for chosen in places], places


def deal(num_rollouts: int, num_updates: int, together: Sequence[int]) -> list[list[int]]:
    """Return which rollouts of a process each update has, the same number for each.

    Updates are dealt blocks of neighbours in turn, by the first size of `together` of which all updates get equally
    many: a pair's rollouts in both orders, else whole groups, else single rollouts. While the same size is taken, which
    processes share the step makes no difference to what an update has.
    """
    size = next((size for size in together if num_rollouts % (size * num_updates) == 0), 1)
    return [
        [place for place in range(num_rollouts) if place // size % num_updates == update]
        for update in range(num_updates)
    ]


def _take(scored: dict[str, Any], places: list[int], multiple: int | None) -> dict[str, Any]:
    prompt = _width(scored["prompt_mask"][places], multiple)
    completion = _width(scored["completion_mask"][places], multiple)
    whole = scored["completion_mask"].shape[1]
    taken: dict[str, Any] = {}
    for name, value in scored.items():
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            taken[name] = value
        elif name in PROMPT_KEYS:
            taken[name] = value[places, -prompt:]
        elif value.dim() == 2 and value.shape[1] == whole:
            taken[name] = value[places, :completion]
        else:
            taken[name] = value[places]
    return taken


def _width(mask: torch.Tensor, multiple: int | None) -> int:
    longest = max(int(mask.sum(1).max()), 1)
    step = multiple or 1
    return min(-(-longest // step) * step, int(mask.shape[1]))


def score_by_length(
    score: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_completion: int,
    size: int,
    multiple: int | None,
) -> torch.Tensor:
    """Return what `score(ids, mask, completion width)` says of each row, computed in narrow batches of like length.

    The result has `num_completion` columns, zero beyond a row's batch.
    """
    masks = attention_mask[:, :-num_completion], attention_mask[:, -num_completion:]
    order: Sequence[int] = attention_mask.sum(1).argsort(descending=True, stable=True).tolist()
    found = torch.empty(0)
    for start in range(0, len(order), size):
        chosen = list(order[start : start + size])
        prompt, completion = (_width(mask[chosen], multiple) for mask in masks)
        border = masks[0].shape[1]
        columns = slice(border - prompt, border + completion)
        scores = score(input_ids[chosen, columns], attention_mask[chosen, columns], completion)
        if not start:
            found = scores.new_zeros(len(order), num_completion)
        found[chosen, :completion] = scores
    return found
