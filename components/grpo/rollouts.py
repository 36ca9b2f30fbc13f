"""Completions of the policy as it is at this moment, by transformers in this process; `vllm_rollouts` has vLLM's.

The same tokens go in and the same text comes out as with every engine of this project.
"""

import copy
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers import AutoConfig
from trl.models.utils import unwrap_model_for_generation

from components.adapters import ranks, training
from components.adapters.engines import Completion, Conversation, OnBatch, OnCompletion, Sampling
from components.adapters.engines.base import one_each
from components.adapters.engines.local import LocalEngine
from components.adapters.engines.transformers import TransformersEngine
from components.adapters.models import context_tokens, load_end_ids
from components.adapters.stage import Stopped
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


class StopDrawing(Exception):
    """A sampler was asked to stop while it drew."""


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
        return self._draw(prompts, one_each(sampling, len(prompts)), lambda: False)

    def sample_until_stopped(
        self, prompts: Sequence[list[int]], sampling: Sequence[Sampling], *, measured: bool = True
    ) -> list[Drawn]:
        """Return what `sample` does. Raises Stopped in all processes once one of them has had a SIGTERM.

        Each process looks for its own while it draws, and all compare before and after: one that has had none finishes
        its share first. `measured`: count the time to the phases sync and rollout.
        """
        drawn: list[Drawn] = []
        stopped = ranks.any_of(training.stop_signal().requested())
        if not stopped:
            try:
                with _phase("sync", measured):
                    self._take_weights()
                with _phase("rollout", measured):
                    drawn = self._draw(prompts, one_each(sampling, len(prompts)), training.stop_signal().requested)
            except StopDrawing:
                stopped = True
            stopped = ranks.any_of(stopped or training.stop_signal().requested())
        if stopped:
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
    def _draw(
        self, prompts: Sequence[list[int]], sampling: list[Sampling], should_stop: Callable[[], bool]
    ) -> list[Drawn]:
        """Complete the prompts. Raises StopDrawing when `should_stop`, asked now and then, says so."""


def _phase(name: str, measured: bool) -> AbstractContextManager[None]:
    return training.phases().measure(name) if measured else nullcontext()


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

    def _draw(
        self, prompts: Sequence[list[int]], sampling: list[Sampling], should_stop: Callable[[], bool]
    ) -> list[Drawn]:
        def stop_between_batches(num_done: int, tokens_per_second: float) -> None:
            if should_stop():
                raise StopDrawing

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
                done = engine.generate_ids(prompts, sampling, stop_between_batches)
            except StopDrawing:
                done = None  # leave the block in the regular way: what it took apart is put together again
        if done is None:
            raise StopDrawing
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
    """Return the model with weights in bf16; no fp32 copy is made on the way.

    Weights that are shared stay shared. Buffers stay as they are: rotary frequencies in bf16 would be others.
    """
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
        for weight in model.parameters()
    }
    policy = copy.deepcopy(model, memo)
    policy.__dict__.pop("generate", None)
    for module in policy.modules():
        module.__dict__.pop("forward", None)  # the trainers' patched forward would still run the fp32 original
    return policy.eval()


def open_sampler(folder: Path, tokenizer: Any, config: Config) -> PolicySampler:
    """Return the sampler that the settings ask for, not yet bound to a trainer."""
    if config.rollouts.engine == "vllm":
        from components.grpo.vllm_rollouts import VLLMSampler

        return VLLMSampler(folder, tokenizer, config)
    return TransformersSampler(folder, tokenizer, config)
