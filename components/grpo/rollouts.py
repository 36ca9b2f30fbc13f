"""Completions of the policy as it is at this moment: by transformers in this process, or by vLLM through TRL.

The same tokens go in and the same text comes out as with every engine of this project. vLLM's part has no test without
a GPU.
"""

import copy
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from transformers import AutoConfig
from trl.generation.vllm_generation import extract_logprobs
from trl.models.utils import unwrap_model_for_generation

from components.adapters import ranks, training
from components.adapters.engines import Completion, Conversation, OnBatch, OnCompletion, Sampling
from components.adapters.engines.base import one_each
from components.adapters.engines.local import LocalEngine
from components.adapters.engines.transformers import TransformersEngine
from components.adapters.models import context_tokens, load_end_ids
from components.adapters.stage import Stopped
from components.core.errors import ReasrmError
from components.grpo.config import Config


@dataclass(frozen=True)
class Drawn(Completion):
    """A completion with the optimizer step whose weights wrote it, and the log-probability of each token if known."""

    version: int = -1
    logprobs: tuple[float | None, ...] | None = None


class Sampler(Protocol):
    """What completes prompts with the weights that are being trained.

    Every process gives its own prompts, and all processes call equally often; no prompts at all are fine.
    """

    @property
    def end_ids(self) -> Collection[int]:
        """Return the tokens that end an answer."""

    def encode(self, prompt: Conversation) -> list[int]:
        """Return the token ids of a conversation with the assistant's turn opened."""

    def sample(self, prompts: Sequence[list[int]], sampling: Sequence[Sampling]) -> Sequence[Completion]:
        """Return one completion for each prompt, in order."""


class _Stop(Exception):
    """SIGTERM arrived between two batches."""


class PolicySampler(LocalEngine):
    """What both samplers share. It belongs to one trainer, which calls `bind` when it is there."""

    streams: ClassVar[bool] = False

    def __init__(self, folder: Path, tokenizer: Any, config: Config) -> None:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        super().__init__(tokenizer, load_end_ids(folder, tokenizer), context_tokens(model_config))
        self.config = config
        self.trainer: Any = None
        self.version = -1

    def bind(self, trainer: Any) -> None:
        """Sample with this trainer's weights from now on."""
        self.trainer = trainer

    def sample(self, prompts: Sequence[list[int]], sampling: Sequence[Sampling]) -> list[Drawn]:
        """Return one completion for each prompt, in order."""
        self._take_weights()
        return self._draw(prompts, one_each(sampling, len(prompts)), None)

    def sample_until_stopped(self, prompts: Sequence[list[int]], sampling: Sequence[Sampling]) -> list[Drawn]:
        """Return what `sample` does. Raises Stopped in all processes as soon as one of them has had a SIGTERM."""
        drawn: list[Drawn] = []
        stopped = False
        with training.phases().measure("sync"):
            self._take_weights()
        try:
            with training.phases().measure("rollout"):
                drawn = self._draw(prompts, one_each(sampling, len(prompts)), _stop_if_asked)
        except _Stop:
            stopped = True
        if ranks.any_of(stopped or training.stop_signal().requested()):
            self.rest()
            raise Stopped("stopped by SIGTERM while the policy wrote its rollouts; run again")
        return drawn

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        on_batch: OnBatch | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """See `Engine.generate`; nothing is reported on the way."""
        return list(self.sample(prompts, one_each(sampling, len(prompts))))

    def rest(self) -> None:
        """Give back what only sampling needs, before the model trains on."""

    def _take_weights(self) -> None:
        """Hand the present weights to an engine that has its own."""

    @abstractmethod
    def _draw(self, prompts: Sequence[list[int]], sampling: list[Sampling], on_batch: OnBatch | None) -> list[Drawn]:
        """Complete the prompts; `on_batch` may raise _Stop between two batches."""


class TransformersSampler(PolicySampler):
    """Generation with the model that trains. Each completion draws from its own seed, whatever is beside it.

    Where the weights are fp32 and the arithmetic is bf16, a bf16 copy generates: faster than casting at each token.
    ZeRO-3's shards are gathered for the time of the call.
    """

    def __init__(self, folder: Path, tokenizer: Any, config: Config) -> None:
        super().__init__(folder, tokenizer, config)
        self._copy: Any = None

    def rest(self) -> None:
        """See `PolicySampler.rest`."""
        self._copy = None

    def _draw(self, prompts: Sequence[list[int]], sampling: list[Sampling], on_batch: OnBatch | None) -> list[Drawn]:
        trainer = self.trainer
        arguments = trainer.args
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gradient_checkpointing_kwargs=arguments.gradient_checkpointing_kwargs,
            ) as model,
            _in_evaluation_mode(model),
        ):
            engine = TransformersEngine(self._policy(model), self.tokenizer, self.config.rollouts.batch_size)
            engine.end_ids = self.end_ids
            try:
                done = engine.generate_ids(prompts, sampling, on_batch)
            except _Stop:
                done = None  # leave the block in the regular way: what it took apart is put together again
        if done is None:
            raise _Stop
        return [Drawn(**vars(completion), version=self.version) for completion in done]

    def _policy(self, model: Any) -> Any:
        step = int(self.trainer.state.global_step)
        weights = next(model.parameters())
        if not self.trainer.args.bf16 or weights.dtype != torch.float32 or _is_sharded(model):
            self.version = step
            return model
        if self._copy is None or self.version != step:
            self._copy = _bf16_copy(model)
            self.version = step
        return self._copy


def _stop_if_asked(num_done: int, tokens_per_second: float) -> None:
    if training.stop_signal().requested():
        raise _Stop


@contextmanager
def _in_evaluation_mode(model: Any) -> Iterator[None]:
    """Let the model generate, as often and as long as this process needs.

    DeepSpeed's hooks on the whole model, which TRL leaves in place, keep the processes in step. Here all weights are
    gathered, and the processes have different numbers of batches: they would wait for each other for ever.
    """
    hooks = {name: getattr(model, name) for name in ("_forward_pre_hooks", "_forward_hooks")}
    model.eval()
    if _is_sharded(model):
        for name in hooks:
            setattr(model, name, OrderedDict())
    try:
        yield
    finally:
        for name, before in hooks.items():
            setattr(model, name, before)
        model.train()


def _is_sharded(model: Any) -> bool:
    return hasattr(next(model.parameters()), "ds_id")


def _bf16_copy(model: Any) -> Any:
    policy = copy.deepcopy(model)
    policy.__dict__.pop("generate", None)
    for module in policy.modules():
        module.__dict__.pop("forward", None)  # the trainers' patched forward would still run the fp32 original
    return policy.to(torch.bfloat16).eval()


class VLLMSampler(PolicySampler):
    """Generation with TRL's vLLM, colocated or a server; the weights are handed over once for each optimizer step.

    Colocated, each completion has its own seed, as with transformers. A server draws with random numbers of its own:
    a resumed run gets other rollouts from it.
    """

    def rest(self) -> None:
        """Put colocated vLLM to sleep: it gives its memory back, and needs the weights anew."""
        generation = self.trainer.vllm_generation
        if generation.mode == "colocate" and generation.enable_sleep_mode and not generation._llm_weights_sleeping:
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True

    def _draw(self, prompts: Sequence[list[int]], sampling: list[Sampling], on_batch: OnBatch | None) -> list[Drawn]:
        self.check(prompts)
        generation = self.trainer.vllm_generation
        if generation.mode == "colocate":
            found = self._colocated(generation, prompts, sampling)
        else:
            found = self._served(generation, prompts, sampling)
        drawn = []
        for (ids, logprobs), prompt, how in zip(found, prompts, sampling, strict=True):
            completion = self.read(ids, len(prompt), how.loop_tokens)
            kept = None if logprobs is None else tuple(logprobs[: completion.num_tokens])
            drawn.append(Drawn(**vars(completion), version=self.version, logprobs=kept))
        return drawn

    def _take_weights(self) -> None:
        generation = self.trainer.vllm_generation
        step = int(self.trainer.state.global_step)
        sleeps = generation.mode == "colocate" and generation.enable_sleep_mode
        if self.version == step and not (sleeps and generation._llm_weights_sleeping):
            return
        generation.sync_weights()
        if sleeps:
            generation.llm.wake_up(tags=["kv_cache"])
        self.version = step

    def _colocated(self, generation: Any, prompts: Sequence[list[int]], sampling: list[Sampling]) -> list[Any]:
        from vllm import SamplingParams

        asked = list(zip(prompts, sampling, strict=True))
        first, everyone = 0, asked
        if generation.tensor_parallel_size > 1:  # the processes that hold one model together do the same work
            shares: list[Any] = [None] * generation.tensor_parallel_size
            torch.distributed.all_gather_object(shares, asked, group=generation.tp_group)
            place = torch.distributed.get_rank(group=generation.tp_group)
            first, everyone = sum(len(share) for share in shares[:place]), [one for share in shares for one in share]
        if not everyone:
            return []
        outputs = generation.llm.generate(
            [{"prompt_token_ids": ids} for ids, _ in everyone],
            sampling_params=[SamplingParams(**self._settings(how), seed=how.seed) for _, how in everyone],
            use_tqdm=False,
        )
        own = outputs[first : first + len(asked)]
        return [(output.outputs[0].token_ids, _logprobs([output])) for output in own]

    def _served(self, generation: Any, prompts: Sequence[list[int]], sampling: list[Sampling]) -> list[Any]:
        shares = ranks.gather((list(prompts), sampling))
        everyone = [ids for share, _ in shares for ids in share]
        kinds = {replace(how, seed=0) for _, share in shares for how in share}
        if not kinds:
            return []
        if len(kinds) > 1:
            raise ReasrmError(f"a vLLM server is asked with one kind of sampling at a time, not with {len(kinds)}")
        found = None
        if ranks.is_main():
            repeats = _repeats(everyone)
            settings = self._settings(next(iter(kinds)))
            answer = generation.vllm_client.generate(everyone[::repeats], n=repeats, **settings)
            logprobs = answer["logprobs"] if settings["logprobs"] is not None else [None] * len(everyone)
            tokens = [None if one is None else [token[0] for token in one] for one in logprobs]
            found = list(zip(answer["completion_ids"], tokens, strict=True))
        answers = ranks.gather(found)[0]
        first = sum(len(share) for share, _ in shares[: ranks.rank()])
        return list(answers[first : first + len(prompts)])

    def _settings(self, how: Sampling) -> dict[str, Any]:
        return {
            "temperature": how.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": how.max_tokens,
            "logprobs": 0 if self.config.rollout_correction else None,
        }


def _logprobs(outputs: list[Any]) -> list[float | None] | None:
    found, _ = extract_logprobs(outputs)
    return None if found is None else [token[0] for token in found[0]]


def _repeats(prompts: Sequence[list[int]]) -> int:
    """Return how often each prompt stands beside itself, if all do so equally often; else 1."""
    count = next((place for place, ids in enumerate(prompts) if ids != prompts[0]), len(prompts))
    whole = len(prompts) % count == 0
    return count if whole and all(ids == prompts[i // count * count] for i, ids in enumerate(prompts)) else 1


def open_sampler(folder: Path, tokenizer: Any, config: Config) -> PolicySampler:
    """Return the sampler that the settings ask for, not yet bound to a trainer."""
    kind = VLLMSampler if config.rollouts.engine == "vllm" else TransformersSampler
    return kind(folder, tokenizer, config)
