"""The routes."""

import logging
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from components.adapters.judging.asking import Asking, Comparison, Said
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.ranking import best_first, judgments_at_most, matches_at_most
from components.core.redact import redact
from components.core.schema import Message
from pipeline.serving import wire
from pipeline.serving.gate import DOCS_FILES, Gate
from pipeline.serving.service import Busy, Loading, Ranked, Service, TooMuch, TooSlow, Unaskable
from pipeline.serving.settings import RETRY_SECONDS

logger = logging.getLogger(__name__)

STATUS: tuple[tuple[type[Exception], int], ...] = (
    (TooMuch, 413),
    (Busy, 429),
    (TooSlow, 504),
    (Unaskable, 502),
    (Transient, 503),
    (InvalidInput, 422),
    (ReasrmError, 500),
    (Exception, 500),
)
"""The first kind that an error is of says its status."""
DESCRIPTION = """A reasoning reward model: it reads a conversation and two answers, reasons in writing, and names the
better answer. Every pair is judged in both orders, so that preferring the first place gains nothing."""


def create_app(service: Service) -> FastAPI:
    """Return the application. It neither starts nor closes the service's judge."""
    app = _new(title="reasrm judge", version="1", description=DESCRIPTION, redoc_url=None)
    # The gate asks for the token; this lets OpenAPI say so.
    guard = [Depends(HTTPBearer(auto_error=False))] if service.settings.token else []
    app.add_middleware(Gate, settings=service.settings, gauges=service.gauges, on_cut=service.cut)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_such)
    for kind, status in STATUS:
        app.add_exception_handler(kind, _handler(status))

    @app.post("/compare", responses=wire.REFUSALS, dependencies=guard)
    async def compare(request: wire.CompareRequest) -> wire.CompareResponse:
        """Judge two answers in both orders, `votes` times each; the verdict is the majority."""
        answers = (request.response_a, request.response_b)
        found = await service.compare(_messages(request.conversation), answers, request.votes)
        return wire.CompareResponse(
            **_verdict(found),
            consistent=found.tally.consistent,
            judgments=[_judgment(one, request.reasoning) for one in found.judgments],
            model=service.model,
        )

    @app.post("/rank", responses=wire.REFUSALS, dependencies=guard)
    async def rank(request: wire.RankRequest) -> wire.RankResponse:
        """Give each answer a reward from 0 to 1, out of comparisons with the others."""
        messages, votes = _messages(request.conversation), request.votes
        found = await service.rank(messages, request.answers, request.method, votes, request.seed)
        return wire.RankResponse(
            rewards=found.rewards,
            best_first=best_first(found.rewards),
            comparisons=[wire.MatchOut(a=one, b=other, **_verdict(c)) for (one, other), c in found.matches.items()],
            cost=_cost(request, found, service.asking.with_votes(votes)),
            model=service.model,
        )

    @app.get("/health", responses={503: {"model": wire.Health}})
    async def health() -> JSONResponse:
        """Say whether the process is worth keeping: also while it loads the model, not once that died or is stuck."""
        return _state(service.failure or "alive", service, not service.failure)

    @app.get("/ready", responses={503: {"model": wire.Health}})
    async def ready() -> JSONResponse:
        """Say whether the judge can be asked."""
        return _state(service.problem or "ready", service, not service.problem)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Return counts for Prometheus."""
        return PlainTextResponse(service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _new(**settings: Any) -> FastAPI:
    """Return an application whose page /docs has its scripts from here: FastAPI's own are on the internet."""
    try:
        from fastapi_offline import FastAPIOffline
    except ImportError:  # an environment of vLLM's, for example
        return FastAPI(**settings)
    app: FastAPI = FastAPIOffline(**settings, static_url=DOCS_FILES)
    return app


def _messages(conversation: "str | list[wire.Turn]") -> list[Message]:
    if isinstance(conversation, str):
        return [Message(role="user", content=conversation)]
    return [Message(role=turn.role, content=turn.content) for turn in conversation]


def _verdict(found: Comparison) -> dict[str, Any]:
    tally = found.tally
    none = tally.num_votes - tally.votes_a - tally.votes_b
    return {
        "verdict": tally.winner,
        "confidence": tally.confidence,
        "score_a": tally.score_a,
        "votes": wire.VotesOut(a=tally.votes_a, b=tally.votes_b, none=none),
    }


def _judgment(said: Said, with_reasoning: bool) -> wire.JudgmentOut:
    return wire.JudgmentOut(
        order="ba" if said.swapped else "ab",
        sample=said.sample,
        verdict=said.vote,
        cause=said.cause,
        reasoning=said.text if with_reasoning else None,
        thinking=said.thinking if with_reasoning else None,
        prompt_tokens=said.num_prompt_tokens,
        completion_tokens=said.num_tokens,
    )


def _cost(request: wire.RankRequest, found: Ranked, asking: Asking) -> wire.CostOut:
    said = [one for comparison in found.matches.values() for one in comparison.judgments]
    most = judgments_at_most(request.method, len(request.answers), asking.votes)
    return wire.CostOut(
        comparisons=len(found.matches),
        comparisons_at_most=matches_at_most(request.method, len(request.answers)),
        judgments=len(said),
        judgments_at_most=most,
        prompt_tokens=sum(one.num_prompt_tokens for one in said),
        completion_tokens=sum(one.num_tokens for one in said),
        completion_tokens_at_most=most * asking.max_tokens,
    )


def _state(status: str, service: Service, good: bool) -> JSONResponse:
    body = wire.Health(status=redact(status), model=service.model).model_dump()
    return JSONResponse(body, status_code=200 if good else 503)


def _handler(status: int) -> Any:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        known = isinstance(error, ReasrmError)
        reason = str(error) if known else f"{type(error).__name__}; the server's log says more"
        if known and status >= 500 and not isinstance(error, Loading):
            logger.warning("%s is answered with %d: %s", request.url.path, status, redact(reason))
        headers = {"retry-after": str(RETRY_SECONDS)} if status in {429, 503} else None
        return JSONResponse({"error": redact(reason)}, status_code=status, headers=headers)

    return answer


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """Say what is wrong with a request, without sending it back."""
    parts = (f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg']}" for one in error.errors())
    reason = redact("; ".join(parts))
    if "json" not in request.headers.get("content-type", ""):
        reason += "; is it JSON? Then send the header `content-type: application/json`"
    return JSONResponse({"error": reason}, status_code=422)


async def _no_such(request: Request, error: Any) -> JSONResponse:
    """Say which routes there are, where a path or a method is none of ours."""
    reason = f"{request.method} {request.url.path}: {error.detail}; there are POST /compare and /rank, and /docs"
    return JSONResponse({"error": redact(reason)}, status_code=error.status_code, headers=error.headers)
