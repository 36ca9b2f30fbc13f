"""Who writes the traces: settings that stages and the teacher adapters share."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from components.core.schema import Record

_OURS = {"messages", "model", "stream", "n", "max_tokens", "max_completion_tokens", "temperature"}
"""Fields of a request that the settings decide, or the protocol."""


class CallLimits(Record):
    """How an endpoint is called; none of it decides what comes back, so it may change between attempts."""

    api_key_env: str = Field("", pattern=r"^([A-Z0-9_]*(KEY|TOKEN|SECRET)[A-Z0-9_]*)?$")
    """Environment variable that holds the key; named so that logs mask its value. Empty: the endpoint wants none."""
    concurrency: int = Field(8, ge=1, le=1024)
    """Most calls under way at once; halved when the endpoint answers 429, and grown back."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Most calls begun in a minute, further attempts included; null is no limit."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Most tokens in a minute, read and written, as providers count them: the prompt and the limit of what may be
    written, when a call begins; null is no limit."""
    attempts: int = Field(6, ge=1, le=20)
    """Most calls for one row; answers that only ask to slow down do not count, `row_seconds` bounds them."""
    call_seconds: float = Field(600, gt=0)
    """Longest time for one call in seconds, from connecting to the last byte."""
    row_seconds: float = Field(1800, gt=0)
    """Time in seconds after which no further attempt for a row begins."""
    max_wait_seconds: float = Field(60, gt=0)
    """Longest pause before another attempt in seconds, also when Retry-After asks for more."""
    max_retry_fraction: float = Field(0.5, ge=0)
    """Further attempts allowed as a fraction of the rows begun (never fewer than 10, nor than `concurrency`); an
    endpoint that needs more is ill, and the stage stops as resumable. Wishes to slow down do not count."""
    breaker_rows: int = Field(8, ge=1)
    """Rows in a row that may fail because the endpoint is not to be reached, before the stage stops."""


class _Teacher(Record):
    """What every teacher in a cascade has."""

    samples: int = Field(1, ge=1, le=64)
    """Judgments that it writes of each pair."""
    show_label: bool = False
    """Whether it is told which answer is better, and shown the last wrong judgment; its traces are marked
    `rationalised`. The paper's second teacher is told (arXiv 2505.02387, appendix B)."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature; null leaves it to the teacher, as the paper did."""
    max_tokens: int | None = Field(None, ge=16)
    """Most tokens in one trace; null takes the stage's."""


class RecordedTeacher(_Teacher):
    """Judgments written earlier, played back: traces by their key, judgments of other projects by their content."""

    kind: Literal["recorded"] = "recorded"
    uri: str = Field(pattern=r"^.+\.jsonl(\.gz)?$")
    """A file of rows: local path or s3:// uri ending in .jsonl or .jsonl.gz."""
    format: Literal["traces", "judgments"] = "traces"
    """`traces`: what this stage writes. `judgments`: rows with prompt, response_a and response_b (as shown), judge,
    trace (free text) and verdict apart from it; they become traces of the grammar `think`."""
    judge: str = ""
    """Only the judgments of this judge (or traces of this teacher); empty takes all."""


BASE_URL = r"^https?://[^/\s@?#]+(/[^\s?#]*)?$"
"""An address that calls go to: http or https, without a user name, a password, a query or a fragment in it."""


class ChatEndpoint(Record):
    """Where an OpenAI-compatible chat endpoint is, and how it is called."""

    base_url: str = Field(pattern=BASE_URL)
    """Address up to and without /chat/completions, for example http://vllm:8000/v1; no user name or password in it."""
    model: str = Field(min_length=1)
    """Name of the model, as the endpoint calls it."""
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - not a secret
    """Name under which the endpoint takes the limit of generated tokens; OpenAI's reasoning models want the second."""
    extra_body: dict[str, JsonValue] = {}
    """Further fields of every request, for example {"chat_template_kwargs": {"enable_thinking": false}} for vLLM."""
    calls: CallLimits = CallLimits()
    """How the endpoint is called: key, rates, attempts, deadlines."""

    @model_validator(mode="after")
    def _further_fields_are_none_of_ours(self) -> Self:
        if ours := sorted(_OURS & self.extra_body.keys()):
            raise ValueError(
                f"extra_body of {self.model} has {', '.join(ours)}, which reasrm sets itself; take it out, and use the "
                "settings for it: model, samples, max_tokens and temperature"
            )
        return self


class _Served(_Teacher, ChatEndpoint):
    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.model} is to write {self.samples} judgments of each pair, which are paid for and all the same "
                "at temperature 0; set another temperature, or samples to 1"
            )
        return self


class EndpointTeacher(_Served):
    """A model behind an OpenAI-compatible chat endpoint: vLLM, a gateway, OpenAI, Anthropic's compatible one."""

    kind: Literal["openai"] = "openai"


class BatchTeacher(_Served):
    """A model behind OpenAI's Batch API: half the price, an answer within a day.

    A service without /files and /batches (vLLM's server is one) wants the kind `openai`.
    """

    kind: Literal["openai-batch"] = "openai-batch"
    max_requests_per_file: int = Field(50_000, ge=1)
    """Most requests in one batch (OpenAI's limit)."""
    max_file_bytes: int = Field(200 * 10**6, ge=10_000)
    """Largest input file in bytes (OpenAI's limit)."""
    max_enqueued_tokens: int | None = Field(None, ge=1)
    """Most prompt tokens in batches under way, estimated; null lets the provider say when it is too much."""
    poll_seconds: float = Field(30, gt=0)
    """Pause between two looks at the batches in seconds."""


class OfflineTeacher(_Teacher):
    """A model that generates in this process, on the pod's own GPU; without a temperature it is greedy."""

    kind: Literal["vllm"] = "vllm"
    model: str = Field(min_length=1)
    """A folder, an s3:// uri, or a hub id with @<40-hex revision>."""
    engine: Literal["vllm", "transformers"] = "vllm"
    """What generates: vLLM, or transformers where there is no vLLM (slow; for trials on a CPU)."""
    batch_size: int = Field(256, ge=1)
    """Prompts handed to the engine together; what is finished is kept after each."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share the model (vLLM)."""
    memory_fraction: float = Field(0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM takes."""
    max_model_tokens: int | None = Field(None, ge=64)
    """Longest prompt and answer together in tokens; null takes the model's."""


AnyTeacher = Annotated[RecordedTeacher | EndpointTeacher | BatchTeacher | OfflineTeacher, Field(discriminator="kind")]


def _as_cascade(value: Any) -> Any:
    return [value] if isinstance(value, dict | _Teacher) else value


Cascade = Annotated[tuple[AnyTeacher, ...], BeforeValidator(_as_cascade), Field(max_length=8)]
"""Teachers in the order in which they are asked: each gets the pairs that those before it did not judge right.

None are needed where nothing is distilled."""


class Price(Record):
    """What a model costs, in dollars for a million tokens."""

    input: float = Field(ge=0)
    """Dollars for a million tokens read."""
    output: float = Field(ge=0)
    """Dollars for a million tokens written, reasoning included."""
