"""Who writes the traces: settings that stages and the teacher adapter share."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from components.core.schema import Record


class RecordedTeacher(Record):
    """Traces written earlier, played back by key."""

    kind: Literal["recorded"] = "recorded"
    uri: str = Field(pattern=r"^.+\.jsonl(\.gz)?$")
    """A file of Trace rows: local path or s3:// uri ending in .jsonl or .jsonl.gz."""


class EndpointTeacher(Record):
    """A model behind an OpenAI-compatible chat endpoint: vLLM, a gateway, a provider."""

    kind: Literal["openai"] = "openai"
    base_url: str = Field(pattern=r"^https?://[^/\s@?#]+(/[^\s?#]*)?$")
    """Address up to and without /chat/completions, for example http://vllm:8000/v1; no user name or password in it."""
    model: str = Field(min_length=1)
    """Name of the model, as the endpoint calls it."""
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - not a secret
    """Name under which the endpoint takes the limit of generated tokens; OpenAI's reasoning models want the second."""
    extra_body: dict[str, JsonValue] = {}
    """Further fields of every request, for example {"chat_template_kwargs": {"enable_thinking": false}} for vLLM."""


TeacherSettings = Annotated[RecordedTeacher | EndpointTeacher, Field(discriminator="kind")]


class CallLimits(Record):
    """How an endpoint is called; none of it decides what comes back, so it may change between attempts."""

    api_key_env: str = Field("", pattern=r"^([A-Z0-9_]*(KEY|TOKEN|SECRET)[A-Z0-9_]*)?$")
    """Environment variable that holds the key; named so that logs mask its value. Empty: the endpoint wants none."""
    concurrency: int = Field(8, ge=1, le=512)
    """Most calls under way at once; halved when the endpoint answers 429, and grown back."""
    attempts: int = Field(6, ge=1, le=20)
    """Most calls for one row."""
    call_seconds: float = Field(600, gt=0)
    """Longest time for one call in seconds, from connecting to the last byte."""
    row_seconds: float = Field(1800, gt=0)
    """Time in seconds after which no further attempt for a row begins."""
    max_wait_seconds: float = Field(60, gt=0)
    """Longest pause before another attempt in seconds, also when Retry-After asks for more."""
    breaker_rows: int = Field(8, ge=1)
    """Rows in a row that may fail because the endpoint is not to be reached, before the stage stops."""
