"""Generation with vLLM's offline engine, on this machine's GPUs.

vLLM runs the model in processes of its own. When one of them is killed from outside (by the kernel for want of memory,
say), a step of vLLM 0.31 waits for ever; so the steps are taken in a thread, and the processes are watched beside it.
"""

import gc
import logging
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

from components.adapters.engines.base import (
    Completion,
    LoadFormat,
    OnBatch,
    OnCompletion,
    Sampling,
    one_each,
    seed_of,
)
from components.adapters.engines.local import LocalEngine
from components.adapters.engines.vllm_steps import Steps
from components.adapters.models import load_end_ids, load_tokenizer, pick_precision
from components.core.errors import InvalidInput, ReasrmError, Transient
from components.core.loops import CHECK_EVERY

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Pause between two looks at vLLM's processes."""
LAST_WORDS_SECONDS = 5.0
"""How long vLLM may take to say itself that it died."""
END_SECONDS = 10.0
"""How long its processes may take to end before they are killed."""
CLOSED = "the engine was closed before it had completed its prompts; run again"
ENVIRONMENT = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # where the stage's own log goes
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads, as a stage is, can lock up
}


class VLLMEngine(LocalEngine):
    """Generation with vLLM.

    Sampling is seeded by prompt, so a resumed run draws with the same random numbers. The text is the same as far as
    the logits are: vLLM's kernels round differently in batches of another size, unless VLLM_BATCH_INVARIANT=1 is set.
    """

    streams: ClassVar[bool] = True

    def __init__(
        self,
        folder: Path,
        *,
        precision: str = "auto",
        max_model_tokens: int | None = None,
        tensor_parallel: int = 1,
        memory_fraction: float = 0.9,
        seed: int = 0,
        load_format: LoadFormat = "auto",
    ) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
        except ImportError as error:
            raise InvalidInput(
                f"the engine 'vllm' needs vLLM, which does not load here ({error}); run the stage on an image that has "
                "it, or set engine to 'transformers'"
            ) from error
        tokenizer = load_tokenizer(folder)
        before = set(multiprocessing.active_children())
        try:
            self._llm: Any = LLM(
                model=str(folder),
                dtype={"bf16": "bfloat16", "fp32": "float32"}[pick_precision(precision)],
                max_model_len=max_model_tokens,
                tensor_parallel_size=tensor_parallel,
                gpu_memory_utilization=memory_fraction,
                seed=seed,
                trust_remote_code=False,
                load_format="dummy" if load_format == "dummy" else "safetensors",
                enable_prefix_caching=True,  # judge prompts share their beginning, samples of one pair all of it
                generation_config="vllm",  # not the model's, which would bend what is sampled
                use_tqdm_on_load=False,
                stream_interval=CHECK_EVERY,  # tokens between two looks at an answer that may loop
            )
        except ValueError as error:
            raise InvalidInput(f"vLLM refuses {folder.name} with these settings: {error}") from error
        except RuntimeError as error:
            raise ReasrmError(
                f"vLLM did not start on {folder.name}: {error}. Its log above says why; where the GPU's memory is too "
                "small, lower max_model_tokens or raise tensor_parallel, and where other work holds some of it, lower "
                "memory_fraction"
            ) from error
        self._processes = [process for process in multiprocessing.active_children() if process not in before]
        self._closing = threading.Event()
        context = int(self._llm.llm_engine.model_config.max_model_len)
        super().__init__(tokenizer, load_end_ids(folder, tokenizer), context)

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling | Sequence[Sampling],
        on_batch: OnBatch | None = None,
        on_completion: OnCompletion | None = None,
    ) -> list[Completion]:
        """Complete prompts given as token ids, all of them together; vLLM decides how many are under way at once."""
        from vllm import SamplingParams

        self.check(prompts)
        if not prompts:
            return []
        each = one_each(sampling, len(prompts))
        if isinstance(sampling, Sampling):
            seeds = [seed_of(f"{sampling.seed}:{place}") for place in range(len(prompts))]
        else:
            seeds = [how.seed for how in each]
        settings = [
            SamplingParams(
                n=1,
                max_tokens=how.max_tokens,
                temperature=how.temperature,
                top_p=1.0,
                top_k=0,
                repetition_penalty=1.0,
                seed=seed,
                stop_token_ids=sorted(self.end_ids),
                detokenize=False,  # done by `read`, as for every local engine
            )
            for how, seed in zip(each, seeds, strict=True)
        ]
        began, num_tokens = time.perf_counter(), 0
        done: dict[int, Completion] = {}

        def report(place: int, ids: list[int]) -> None:
            nonlocal num_tokens
            done[place] = completion = self.read(ids, len(prompts[place]), each[place].loop_tokens)
            num_tokens += completion.num_tokens
            if on_completion is not None:
                on_completion(place, completion)
            if on_batch is not None:
                on_batch(1, num_tokens / (time.perf_counter() - began))

        self._generate(prompts, settings, [how.loop_tokens for how in each], report)
        return [done[place] for place in range(len(prompts))]

    def close(self) -> None:
        """See `Engine.close`. The GPU's memory is free when this returns."""
        self._closing.set()
        self._llm = None
        gc.collect()  # vLLM ends its processes when its engine is collected
        for process in self._processes:
            _end(process)

    def _generate(
        self,
        prompts: Sequence[list[int]],
        settings: Sequence[Any],
        windows: Sequence[int],
        report: Callable[[int, list[int]], None],
    ) -> None:
        """Call `report` with the place and the tokens of each answer. Raises Transient when vLLM dies on the way."""
        from vllm.v1.engine.exceptions import EngineDeadError

        llm = self._llm
        if llm is None or self._closing.is_set():
            raise Transient(CLOSED)
        steps = Steps(llm.llm_engine, prompts, settings, windows)
        try:
            complete = self._report_all(steps, report)
        finally:
            steps.stop()
            while self._is_up() and not steps.has_ended(LOOK_SECONDS):
                pass
        if complete:
            return
        if self._closing.is_set():
            raise Transient(CLOSED)
        if steps.error is not None and not isinstance(steps.error, EngineDeadError):
            raise steps.error
        codes = [process.exitcode for process in self._processes if not process.is_alive()]
        raise Transient(
            f"vLLM's engine died{f' (exit code {codes[0]})' if codes else ''}; its log above may say why. Run again: "
            "what is finished is kept"
        ) from steps.error

    def _report_all(self, steps: Steps, report: Callable[[int, list[int]], None]) -> bool:
        """Report answers until there are no more; say whether that is because all of them were reported."""
        while not self._closing.is_set():
            is_up = self._is_up()
            try:
                found = steps.next(LOOK_SECONDS if is_up else LAST_WORDS_SECONDS)
            except queue.Empty:
                if is_up:
                    continue
                return False
            if found is None:
                return steps.error is None
            report(*found)
        return False

    def _is_up(self) -> bool:
        return not self._closing.is_set() and all(process.is_alive() for process in self._processes)


def _end(process: BaseProcess) -> None:
    process.join(0)
    if process.is_alive():
        process.terminate()
        process.join(END_SECONDS)
    if process.is_alive():
        logger.warning("vLLM's process %s does not end and is killed", process.pid)
        process.kill()
        process.join(END_SECONDS)
