"""The settings by which a judge's engine is opened, and the opening."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from components.adapters.engines import Engine, open_engine
from components.core.schema import Record
from components.core.teachers import CallLimits, EndpointTeacher

Kind = Literal["transformers", "vllm", "endpoint"]


class EngineSettings(Record):
    """What generates: a model on this machine, or an OpenAI-compatible endpoint."""

    kind: Kind = "transformers"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of a model on this machine."""
    batch_size: int = Field(16, ge=1)
    """Prompts in one matrix (transformers)."""
    max_model_tokens: int | None = Field(None, ge=64)
    """Longest prompt and judgment together in tokens; null takes the model's."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share the model (vLLM)."""
    memory_fraction: float = Field(0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM takes."""
    base_url: str = ""
    """Address of the endpoint up to and without /chat/completions."""
    extra_body: dict[str, JsonValue] = {}
    """Further fields of every request to the endpoint."""
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - not a secret
    """Name under which the endpoint takes the limit of generated tokens."""
    send_temperature: bool = True
    """Whether the endpoint is sent a temperature; OpenAI's reasoning models refuse to be given one."""
    calls: CallLimits = CallLimits()
    """How the endpoint is called: key, rates, attempts, deadlines."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.kind == "endpoint") != bool(self.base_url):
            raise ValueError(f"engine {self.kind} and base_url {self.base_url!r} do not go together")
        return self

    @property
    def batch(self) -> int:
        """Most prompts that one call of the engine is given, where more come all the time.

        transformers finishes a matrix before it begins another; vLLM runs about so many sequences at once.
        """
        return {"transformers": self.batch_size, "vllm": 256, "endpoint": self.calls.concurrency}[self.kind]


@dataclass(frozen=True)
class Opener:
    """Opens the engine of one model: a folder, or an endpoint's name for it."""

    settings: EngineSettings
    model: str | Path

    def __call__(self) -> Engine:
        """Open it. Raises InvalidInput or ReasrmError as the engines do."""
        settings = self.settings
        if settings.kind == "endpoint":
            from components.adapters.engines.openai import OpenAIEngine

            endpoint = EndpointTeacher(
                base_url=settings.base_url,
                model=str(self.model),
                token_field=settings.token_field,
                extra_body=settings.extra_body,
                calls=settings.calls,
            )
            return OpenAIEngine(endpoint, settings.calls, send_temperature=settings.send_temperature)
        return open_engine(
            settings.kind,
            Path(self.model),
            precision=settings.precision,
            batch_size=settings.batch_size,
            max_model_tokens=settings.max_model_tokens,
            tensor_parallel=settings.tensor_parallel,
            memory_fraction=settings.memory_fraction,
        )
