"""Judges many pairs with one engine, and hands over each pair as soon as its last judgment is there."""

from collections.abc import Callable, Sequence

from components.adapters.engines import Engine
from components.adapters.judging.asking import Asking, Comparison, Prompt, Said, ask, compared, prompts_of
from components.core.schema import PreferencePair

OnPair = Callable[[int, Comparison], None]


def judge_all(
    engine: Engine,
    pairs: Sequence[PreferencePair],
    asking: Asking,
    on_pair: OnPair,
    on_said: Callable[[Said], None],
    slice_pairs: int = 16,
    stream_pairs: int = 4096,
) -> None:
    """Call `on_pair` with the place of each pair and its comparison.

    An engine that does not stream is given `slice_pairs` pairs at a time, the longest first: they share its batches,
    and a killed run loses no more than them. One that streams is given `stream_pairs`: as many prompts are in memory,
    and at the end of so many it waits for the last one. Raises as the engine does; what was reported stands.
    """
    order = sorted(range(len(pairs)), key=lambda place: (-_length(pairs[place]), place))
    size = stream_pairs if engine.streams else slice_pairs
    for start in range(0, len(order), size):
        _judge(engine, pairs, order[start : start + size], asking, on_pair, on_said)


def _judge(
    engine: Engine,
    pairs: Sequence[PreferencePair],
    places: Sequence[int],
    asking: Asking,
    on_pair: OnPair,
    on_said: Callable[[Said], None],
) -> None:
    asked: list[Prompt] = []
    owners: list[int] = []
    for place in places:
        prompts = prompts_of(pairs[place], asking)
        asked += prompts
        owners += [place] * len(prompts)
    held: dict[int, list[Said]] = {place: [] for place in places}

    def keep(at: int, said: Said) -> None:
        place = owners[at]
        held[place].append(said)
        on_said(said)
        if len(held[place]) == 2 * asking.votes:
            on_pair(place, compared(held.pop(place)))

    ask(engine, asked, keep)


def _length(pair: PreferencePair) -> int:
    return sum(len(message.content) for message in pair.prompt) + len(pair.response_a) + len(pair.response_b)
