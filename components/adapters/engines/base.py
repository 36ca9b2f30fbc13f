"""What every engine speaks."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from components.core.errors import InvalidInput
from components.core.schema import Message

Conversation = Sequence[Message]
OnBatch = Callable[[int, float], None]
LoadFormat = Literal["auto", "dummy"]
"""`auto` reads the folder's safetensors; `dummy` needs none and makes random weights: what it writes means nothing."""


@dataclass(frozen=True)
class Sampling:
    """How to generate: `temperature` 0 is greedy; `seed` makes sampling repeatable.

    An answer whose last `loop_tokens` tokens are one short block repeated has got stuck, and is ended; 0 lets it go on
    to its limit. A judge may quote an answer that is stuck: 512 tokens are longer than a quotation needs to be.
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    loop_tokens: int = 0


@dataclass(frozen=True)
class Completion:
    """What came back for one prompt; `truncated` means that it was cut off before it ended by itself.

    It is cut off at its token limit, or earlier because it repeated itself: `looped` says that it was going in circles
    where it ends, and is only looked for where `Sampling.loop_tokens` asks for it. `token_ids` is empty where the
    engine does not tell (an endpoint); the numbers of tokens are always there. `declined`: an endpoint's model or its
    filter of contents would not answer, so the text is empty. `thinking`: what an endpoint's server kept apart from the
    text (a reasoning parser, as vLLM has); it is for people to read and takes no part in the verdict.
    """

    text: str
    truncated: bool
    num_tokens: int
    token_ids: tuple[int, ...] = ()
    num_prompt_tokens: int = 0
    looped: bool = False
    declined: bool = False
    thinking: str = ""


OnCompletion = Callable[[int, Completion], None]


class TooLong(InvalidInput):
    """Prompts that leave no room for an answer in the model's context. Nothing is ever cut.

    `num_tokens` has the length of each such prompt by its place among the prompts; `context` is the model's limit.
    A local engine counts before it generates anything, and shortens answers to the room that is left. An endpoint
    answers the others first, and wants room for the whole limit of the answer: `num_answer_tokens` of the first such
    prompt. Its lengths are what it says, or else the least that they can be.
    """

    def __init__(self, num_tokens: Mapping[int, int], context: int, num_answer_tokens: int = 0) -> None:
        self.num_tokens = dict(num_tokens)
        self.context = context
        self.num_answer_tokens = num_answer_tokens
        place, length = next(iter(self.num_tokens.items()))
        answer = f" and {num_answer_tokens} for its answer" if num_answer_tokens else ""
        super().__init__(
            f"{len(self.num_tokens)} prompts do not fit into the model's context of {context} tokens, the first being "
            f"number {place} with {length} tokens{answer}; drop them, or take a model (or a max_model_tokens) with "
            "more room"
        )


class Unanswered(InvalidInput):
    """Prompts that get no answer, however often they are asked; the others have theirs.

    `places` are those of the prompts, `reason` is why the first one got none.
    """

    def __init__(self, places: Sequence[int], num_asked: int, reason: str) -> None:
        self.places = tuple(places)
        self.reason = reason
        super().__init__(
            f"{len(self.places)} of {num_asked} prompts get no answer; the first is number {self.places[0]}: {reason}. "
            "Drop them, or change the prompts, the endpoint, or max_tokens"
        )


class Engine(Protocol):
    """Anything that completes prompts."""

    streams: ClassVar[bool]
    """Whether to hand over all prompts in one call, of which such an engine keeps as many under way as it can.

    Without it the caller slices: the engine makes batches of what a call has, by length, and its completions are a
    function of the whole call.
    """

    def generate(
        self,
        prompts: Sequence[Conversation],
        sampling: Sampling | Sequence[Sampling],
        on_batch: OnBatch | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """Return one completion per prompt, in order; `on_batch(num_done, tokens_per_second)` is called on the way.

        `on_completion(place, completion)` is called once for each prompt as soon as its completion is there, in any
        order and in the calling thread, while others are under way. What it raises ends the call.

        One `sampling` is for all prompts, which then draw from one stream of random numbers. A sequence has one for
        each: every prompt draws from the stream of its own seed, whatever the prompts beside it are.

        Raises:
            TooLong: prompts that do not fit; complete the others without them.
            Unanswered: prompts that get no answer however often they are asked; the others were reported.
            Transient: the engine died or was closed. Run again; what earlier calls returned stands, and so does what
                this one has reported.
        """

    def close(self) -> None:
        """Free what the engine holds. May be called from another thread: a call under way then ends with Transient."""


def seed_of(key: str) -> int:
    """Return a seed that depends on nothing but the key; 56 bits, which every engine takes."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])


def digest_of_messages(messages: Conversation) -> str:
    """Return the sha256 of a conversation, in hex."""
    text = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def one_each(sampling: Sampling | Sequence[Sampling], num_prompts: int) -> list[Sampling]:
    """Return one sampling for each prompt. Raises ValueError when a sequence has another length."""
    each = [sampling] * num_prompts if isinstance(sampling, Sampling) else list(sampling)
    if len(each) != num_prompts:
        raise ValueError(f"{len(each)} samplings for {num_prompts} prompts")
    return each
