"""What goes over the wire, with the examples that OpenAPI shows."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from components.core.ranking import Method
from components.core.schema import Label, Role, VerdictCause

CONVERSATION = "What is the capital of Australia?"
VOTES: dict[str, Any] = {"a": 2, "b": 0, "none": 0}
RIGHT, WRONG = "Canberra.", "Sydney, of course."


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Turn(_Wire):
    """One turn of a conversation."""

    role: Role
    content: str


Conversation = Annotated[
    str | list[Turn],
    Field(description="A question, or the turns of a conversation that ends with a user's.", examples=[CONVERSATION]),
]
Votes = Annotated[
    int | None,
    Field(
        ge=1, le=64, description="Judgments in each order; without it the server's. More than the server allows: 422."
    ),
]


class CompareRequest(_Wire):
    """Which of two answers is better?"""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"conversation": CONVERSATION, "response_a": RIGHT, "response_b": WRONG, "votes": 1}]
        }
    )
    conversation: Conversation
    response_a: str
    response_b: str
    votes: Votes = None
    reasoning: bool = Field(True, description="Whether what the judge wrote (`reasoning`, `thinking`) is sent back.")


class JudgmentOut(_Wire):
    """One judgment."""

    order: Literal["ab", "ba"] = Field(description="Which answer the judge was shown first.")
    sample: int = Field(description="Counts the judgments in this order, from 0.")
    verdict: Label | None = Field(description="The better answer, whatever the order; null: no verdict.")
    cause: VerdictCause = Field(description="`ok`, or why there is no verdict.")
    reasoning: str | None = Field(description="What the judge wrote, its verdict included.")
    thinking: str | None = Field(
        description="What its server kept apart from that (`reasoning_content`); empty where it keeps nothing apart."
    )
    prompt_tokens: int
    completion_tokens: int


class VotesOut(_Wire):
    """Votes over both orders."""

    a: int
    b: int
    none: int = Field(description="Judgments without a verdict.")


class CompareResponse(_Wire):
    """The verdict over both orders and all votes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "verdict": "A",
                    "confidence": 1.0,
                    "consistent": True,
                    "score_a": 1.0,
                    "votes": VOTES,
                    "judgments": [
                        {
                            "order": order,
                            "sample": 0,
                            "verdict": "A",
                            "cause": "ok",
                            "reasoning": f"... <answer>[[{place}]]</answer>",
                            "thinking": "",
                            "prompt_tokens": 420,
                            "completion_tokens": 310,
                        }
                        for order, place in (("ab", "A"), ("ba", "B"))
                    ],
                    "model": "reasrm-demo/3",
                }
            ]
        }
    )
    verdict: Label | None = Field(description="The answer with more votes; null where both have as many.")
    confidence: float | None = Field(description="Share of all judgments, both orders, that are for the verdict.")
    consistent: bool | None = Field(description="Whether both orders name the same answer; null: one names none.")
    score_a: float | None = Field(
        description="From 0 to 1, how far the votes are for A; null: no judgment has a verdict."
    )
    votes: VotesOut
    judgments: list[JudgmentOut]
    model: str


class RankRequest(_Wire):
    """Rank answers to one conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"conversation": CONVERSATION, "answers": [WRONG, RIGHT, "I do not know."], "method": "round_robin"}
            ]
        }
    )
    conversation: Conversation
    answers: list[str] = Field(min_length=2)
    method: Method = Field(
        "round_robin",
        description="`round_robin` judges all n(n-1)/2 pairs, `knockout` n-1 of them. Each in both orders.",
    )
    votes: Votes = None
    seed: int = Field(0, ge=0, description="Draws who meets whom in a knockout.")


class MatchOut(_Wire):
    """What the judge said about two of the answers."""

    a: int = Field(description="Place of answer A in the request, from 0.")
    b: int
    verdict: Label | None
    confidence: float | None
    score_a: float | None
    votes: VotesOut


class CostOut(_Wire):
    """What a ranking took, and the most that one of its size can take."""

    comparisons: int
    comparisons_at_most: int
    judgments: int
    judgments_at_most: int
    prompt_tokens: int
    completion_tokens: int
    completion_tokens_at_most: int


class RankResponse(_Wire):
    """A reward for each answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "rewards": [0.0, 1.0, 0.5],
                    "best_first": [1, 2, 0],
                    "comparisons": [
                        {"a": 0, "b": 1, "verdict": "B", "confidence": 1.0, "score_a": 0.0,
                         "votes": {"a": 0, "b": 2, "none": 0}},
                        {"a": 0, "b": 2, "verdict": "B", "confidence": 1.0, "score_a": 0.0,
                         "votes": {"a": 0, "b": 2, "none": 0}},
                        {"a": 1, "b": 2, "verdict": "A", "confidence": 1.0, "score_a": 1.0, "votes": VOTES},
                    ],
                    "cost": {"comparisons": 3, "comparisons_at_most": 3, "judgments": 6, "judgments_at_most": 6,
                             "prompt_tokens": 2520, "completion_tokens": 1900, "completion_tokens_at_most": 49152},
                    "model": "reasrm-demo/3",
                }
            ]
        }
    )  # fmt: skip
    rewards: list[float | None] = Field(description="From 0 to 1, in the order of the answers; null: nothing was said.")
    best_first: list[int] = Field(description="Places of the answers, those without a reward last.")
    comparisons: list[MatchOut]
    cost: CostOut
    model: str


class Refusal(_Wire):
    """Why a request was not answered, and what to do."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": "no or a wrong bearer token"}]})
    error: str


class Health(_Wire):
    """Whether the service is alive or ready."""

    status: str
    model: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body is not JSON."},
    401: {"model": Refusal, "description": "No or a wrong bearer token."},
    413: {"model": Refusal, "description": "The body is too large, or it asks for more than the queue ever takes."},
    422: {"model": Refusal, "description": "What was sent cannot be judged."},
    429: {"model": Refusal, "description": "Too much waits already; Retry-After says when to come again."},
    502: {"model": Refusal, "description": "The endpoint behind the judge refuses to be asked."},
    503: {"model": Refusal, "description": "The judge is not there yet, or no more."},
    504: {"model": Refusal, "description": "The judge took too long."},
}
