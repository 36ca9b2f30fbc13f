"""Generation with transformers, in this process, on a CPU or a GPU."""

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from components.adapters.engines.base import Completion, LoadFormat, OnBatch, OnCompletion, Sampling, one_each
from components.adapters.engines.local import LocalEngine
from components.adapters.models import context_tokens, end_ids, load_model, load_tokenizer, pick_precision
from components.core.errors import Transient
from components.core.loops import CHECK_EVERY, loops


class TransformersEngine(LocalEngine):
    """Batched generation with transformers.

    Prompts are sorted by length before they are batched, so that little is spent on padding, and the longest go first,
    so that memory that is too small shows at once. The composition of the batches depends on nothing but the prompts:
    the same call gives the same completions. In other company a prompt is padded to another width; a sampled token can
    then differ where two were all but equally likely.
    """

    streams: ClassVar[bool] = False

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_model_tokens: int | None = None) -> None:
        ends = end_ids(model.generation_config.eos_token_id, tokenizer)
        super().__init__(tokenizer, ends, context_tokens(model.config, max_model_tokens))
        self.model = model
        self.batch_size = batch_size
        self._busy = threading.Lock()
        self._closed = threading.Event()

    @classmethod
    def load(
        cls,
        folder: Path,
        batch_size: int,
        precision: str = "auto",
        max_model_tokens: int | None = None,
        load_format: LoadFormat = "auto",
    ) -> "TransformersEngine":
        """Load model and tokenizer from a folder."""
        import torch

        dtype = torch.bfloat16 if pick_precision(precision) == "bf16" else torch.float32
        model = load_model(folder, dtype) if load_format == "auto" else _random_model(folder, dtype)
        return cls(model.eval(), load_tokenizer(folder), batch_size, max_model_tokens)

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        on_batch: OnBatch | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """Complete prompts given as token ids."""
        import torch

        self.check(prompts)
        each = one_each(sampling, len(prompts))
        completions: dict[int, Completion] = {}
        if isinstance(sampling, Sampling):
            torch.manual_seed(sampling.seed)
        with self._busy:
            for batch, shared in self._batches(prompts, each):
                began = time.perf_counter()
                chosen = [prompts[index] for index in batch]
                seeds = None if isinstance(sampling, Sampling) else [each[index].seed for index in batch]
                with _death_is_transient():
                    done = self._complete(chosen, shared, seeds)
                completions.update(zip(batch, done, strict=True))
                if on_completion is not None:
                    for index, completion in zip(batch, done, strict=True):
                        on_completion(index, completion)
                if on_batch is not None:
                    on_batch(len(batch), sum(c.num_tokens for c in done) / (time.perf_counter() - began))
        return [completions[index] for index in range(len(prompts))]

    def close(self) -> None:
        """See `Engine.close`."""
        import torch

        self._closed.set()
        with self._busy:
            self.model = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _batches(self, prompts: Sequence[list[int]], each: Sequence[Sampling]) -> Iterator[tuple[list[int], Sampling]]:
        """Yield the places of prompts that go together, longest first, and the sampling that they share but for seeds.

        Only prompts with the same limit share a batch: near the end of the context, where the prompt's length decides
        the limit, a neighbour must not take a prompt's room.
        """
        batch: list[int] = []
        kind: Sampling | None = None
        for index in sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index)):
            limit = min(each[index].max_tokens, self.context - len(prompts[index]))
            own = replace(each[index], max_tokens=limit, seed=0)
            if kind is not None and (own != kind or len(batch) == self.batch_size):
                yield batch, kind
                batch = []
            batch.append(index)
            kind = own
        if kind is not None:
            yield batch, kind

    def _complete(self, prompts: list[list[int]], shared: Sampling, seeds: list[int] | None) -> list[Completion]:
        import torch

        if self._closed.is_set():
            raise Transient("the engine was closed before it had completed its prompts; run again")
        padded = self.tokenizer.pad({"input_ids": prompts}, padding=True, return_tensors="pt").to(self.model.device)
        how: dict[str, Any] = {"do_sample": False}
        if shared.temperature > 0 and seeds is None:
            how = {"do_sample": True, "temperature": shared.temperature, "top_p": 1.0, "top_k": 0}
        elif shared.temperature > 0 and seeds is not None:
            how["logits_processor"] = [_draw_by_row(seeds, shared.temperature)]
        width = padded["input_ids"].shape[1]
        criteria: list[Any] = [self._stop_when_closed]
        if shared.loop_tokens:
            criteria.append(_stop_in_circles(width, shared.loop_tokens))
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=padded["input_ids"],
                attention_mask=padded["attention_mask"],
                max_new_tokens=shared.max_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=sorted(self.end_ids),
                # What a model's own generation_config asks for would bend scores and rollouts (Qwen2.5 ships 1.05).
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                # With ZeRO-3 the processes would be kept in step token by token, and they have batches of their own.
                synced_gpus=False,
                stopping_criteria=criteria,
                **how,
            )
        if self._closed.is_set():
            raise Transient("the engine was closed before it had completed its prompts; run again")
        rows = output[:, width:].tolist()
        return [self.read(row, len(prompt), shared.loop_tokens) for row, prompt in zip(rows, prompts, strict=True)]

    def _stop_when_closed(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        return torch.full((ids.shape[0],), self._closed.is_set(), dtype=torch.bool, device=ids.device)


@contextmanager
def _death_is_transient() -> Iterator[None]:
    """Turn a GPU's error into Transient: after one, no call of this process works any more. Full memory is none."""
    try:
        yield
    except RuntimeError as error:
        if "CUDA error" not in str(error) or "out of memory" in str(error):
            raise
        raise Transient(
            f"the GPU failed ({str(error).splitlines()[0]}); this process cannot use it any more: run again"
        ) from error


def _random_model(folder: Path, dtype: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.random.fork_rng(), torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _stop_in_circles(width: int, loop_tokens: int) -> Any:
    """Return a stopping criterion that ends each row that loops, looking at the lengths at which `read` looks.

    Rows that have ended are padded, and so loop; that makes no difference to them.
    """
    import torch

    def stop(ids: Any, scores: Any, **kwargs: Any) -> Any:
        num_generated = ids.shape[1] - width
        if num_generated < loop_tokens or num_generated % CHECK_EVERY:
            return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
        return torch.tensor([loops(row, loop_tokens) for row in ids[:, -loop_tokens:].tolist()], device=ids.device)

    return stop


def _draw_by_row(seeds: Sequence[int], temperature: float) -> Any:
    """Return a logits processor after which the greedy choice is a sample, drawn for each row from its own seed.

    Adding Gumbel noise and taking the largest is sampling from the softmax. The noise is double precision: among single
    precision uniforms an exact 0, whose noise is infinite, turns up every few hundred tokens of a large vocabulary.
    """
    import torch

    generators: list[Any] = []

    def process(ids: Any, scores: Any) -> Any:
        if not generators:
            generators.extend(torch.Generator(scores.device).manual_seed(seed) for seed in seeds)
        noise = torch.empty(scores.shape, dtype=torch.float64, device=scores.device)
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(generator=generator)
        return scores.double() / temperature - noise.log()

    return process
