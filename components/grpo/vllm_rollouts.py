"""Rollouts by vLLM, on the GPUs that train or by a server, through TRL's connection to it. Not yet run on a GPU."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from trl.generation.vllm_generation import extract_logprobs
from trl.trainer import grpo_trainer

from components.adapters import ranks
from components.adapters.engines import Sampling
from components.core.loops import first_loop
from components.grpo.config import Config
from components.grpo.rollouts import Drawn, PolicySampler, StopDrawing

MAX_NUM_SEQS = 1024
"""Most completions that colocated vLLM has under way at once; its default for large GPUs."""
STEPS_BETWEEN_LOOKS = 64
"""Steps (tokens of each completion) of colocated vLLM between two looks for SIGTERM: some seconds."""
SECONDS_BETWEEN_LOOKS = 0.5
"""The same while a server works."""

Asked = list[tuple[list[int], Sampling]]
Found = list[tuple[list[int], list[float | None] | None]]
"""The tokens of each completion and their log-probabilities, where they were asked for."""

_numbers = itertools.count()


class VLLMSampler(PolicySampler):
    """Generation with vLLM; the weights are handed over once for each optimizer step.

    Colocated, each completion has its own seed, as with transformers. vLLM then draws row by row: some microseconds for
    each completion in each step, the price of rollouts that do not depend on what is beside them, and that processes
    which hold one model together draw alike. A server draws with random numbers of its own: a resumed run gets other
    rollouts from it.

    SIGTERM is seen within some seconds: colocated by each process (by all that hold one model together), with a server
    by the first process only, which asks it for all.
    """

    def __init__(self, folder: Path, tokenizer: Any, config: Config) -> None:
        super().__init__(folder, tokenizer, config)
        self.context = min(self.context, config.max_prompt_tokens + config.max_completion_tokens)

    def bind(self, trainer: Any) -> None:
        """Sample with this trainer's weights from now on."""
        super().bind(trainer)
        generation = trainer.vllm_generation
        if is_peft_model(generation.model):
            generation._iter_named_params = lambda: merged_parameters(generation.model)

    def rest(self) -> None:
        """Put colocated vLLM to sleep: it gives its memory back, and needs the weights anew."""
        generation = self.trainer.vllm_generation
        if generation.mode == "colocate" and generation.enable_sleep_mode and not generation._llm_weights_sleeping:
            generation.llm.sleep(level=2)
            generation._llm_weights_sleeping = True

    def _draw(
        self, prompts: Sequence[list[int]], sampling: list[Sampling], should_stop: Callable[[], bool]
    ) -> list[Drawn]:
        self.check(prompts)
        asked = [
            (ids, replace(how, max_tokens=min(how.max_tokens, self.context - len(ids))))
            for ids, how in zip(prompts, sampling, strict=True)
        ]
        generation = self.trainer.vllm_generation
        draw = self._colocated if generation.mode == "colocate" else self._served
        drawn = []
        for (ids, logprobs), (prompt, how) in zip(draw(generation, asked, should_stop), asked, strict=True):
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

    def _colocated(self, generation: Any, asked: Asked, should_stop: Callable[[], bool]) -> Found:
        from vllm import SamplingParams

        first, everyone = 0, asked
        if generation.tensor_parallel_size > 1:  # the processes that hold one model together do the same work
            if is_peft_model(generation.model):  # as TRL does: NCCL is to be done with the gradients of so few weights
                torch.distributed.barrier(device_ids=[ranks.local_rank()])
            shares: list[Any] = [None] * generation.tensor_parallel_size
            torch.distributed.all_gather_object(shares, asked, group=generation.tp_group)
            place = torch.distributed.get_rank(group=generation.tp_group)
            first, everyone = sum(len(share) for share in shares[:place]), [one for share in shares for one in share]
            should_stop = _agreed(should_stop)
        settings = [
            SamplingParams(
                **self._settings(how),
                seed=how.seed,
                stop_token_ids=sorted(self.end_ids),
                detokenize=False,  # done by `read`, as for every local engine
            )
            for _, how in everyone
        ]
        windows = [how.loop_tokens for _, how in everyone]
        found = complete(generation.llm.llm_engine, [ids for ids, _ in everyone], settings, windows, should_stop)
        return found[first : first + len(asked)]

    def _served(self, generation: Any, asked: Asked, should_stop: Callable[[], bool]) -> Found:
        shares = ranks.gather(asked)
        everyone = [one for share in shares for one in share]
        answer: list[Found | None] = [None]
        if ranks.is_main():
            with suppress(StopDrawing):  # the others are told first
                answer = [self._ask_server(generation.vllm_client, everyone, should_stop)]
        if ranks.world_size() > 1:
            torch.distributed.broadcast_object_list(answer, src=0)
        if answer[0] is None:
            raise StopDrawing
        first = sum(len(share) for share in shares[: ranks.rank()])
        return answer[0][first : first + len(asked)]

    def _ask_server(self, client: Any, everyone: Asked, should_stop: Callable[[], bool]) -> Found:
        """Return what the server answers to all prompts, those with the same sampling in one request."""
        kinds: dict[Sampling, list[int]] = {}
        for place, (_, how) in enumerate(everyone):
            kinds.setdefault(replace(how, seed=0), []).append(place)
        found: dict[int, tuple[list[int], list[float | None] | None]] = {}
        for how, places in kinds.items():
            prompts = [everyone[place][0] for place in places]
            repeats = _repeats(prompts) if how.temperature else 1
            settings = self._settings(how) | {"generation_kwargs": {"stop_token_ids": sorted(self.end_ids)}}
            answer = _interruptibly(
                lambda prompts=prompts[::repeats], n=repeats, settings=settings: client.generate(  # type: ignore[misc]
                    prompts, n=n, **settings
                ),
                should_stop,
            )
            logprobs = answer["logprobs"] if settings["logprobs"] is not None else None
            tokens = [None] * len(places) if logprobs is None else [[one[0] for one in each] for each in logprobs]
            found.update(zip(places, zip(answer["completion_ids"], tokens, strict=True), strict=True))
        return [found[place] for place in range(len(everyone))]

    def _settings(self, how: Sampling) -> dict[str, Any]:
        return {
            "temperature": how.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": how.max_tokens,
            "logprobs": 0 if self.config.rollout_correction and how.temperature else None,
        }


@contextmanager
def limited_vllm() -> Iterator[None]:
    """Let a trainer that is made in this block start a vLLM with room for no more than MAX_NUM_SEQS completions.

    TRL makes room for all rollouts of a step. vLLM sizes buffers and graphs by it, and refuses more than its 4,096
    tokens a step.
    """
    make = grpo_trainer.VLLMGeneration

    def limited(*args: Any, max_num_seqs: int, **kw: Any) -> Any:
        return make(*args, max_num_seqs=min(max_num_seqs, MAX_NUM_SEQS), **kw)

    grpo_trainer.VLLMGeneration = limited
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = make


def merged_parameters(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a model with LoRA adapters, merged one at a time, under the names of the model without them.

    TRL merges in place and takes the adapters out again. Each time the frozen bf16 weights would be rounded, and drift.
    """
    for name, weight in model.named_parameters():
        if model.prefix in name:
            continue
        merged = weight.detach()
        if name.endswith(".base_layer.weight"):
            layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
            with torch.no_grad():
                for adapter in layer.active_adapters:
                    merged = (merged.float() + layer.get_delta_weight(adapter).float()).to(weight.dtype)
        yield name.removeprefix("base_model.model.").replace(".base_layer", ""), merged


@dataclass
class _Answer:
    """What there is of one completion; `window` is how many tokens have to loop for its end, 0: none are looked at."""

    place: int
    window: int
    ids: list[int] = field(default_factory=list)
    num_seen: int = 0

    def loops(self) -> bool:
        seen, self.num_seen = self.num_seen, len(self.ids)
        return first_loop(self.ids, self.window, seen) is not None


def complete(
    engine: Any,
    prompts: Sequence[list[int]],
    settings: Sequence[Any],
    windows: Sequence[int],
    should_stop: Callable[[], bool],
) -> Found:
    """Complete prompts with vLLM's engine in this process and thread, step by step, as LLM.generate does.

    Raises StopDrawing when `should_stop` says so, every STEPS_BETWEEN_LOOKS steps; nothing stays in the engine.
    """
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    under_way: dict[str, _Answer] = {}
    found: Found = [([], None)] * len(prompts)
    try:
        for place, (ids, how, window) in enumerate(zip(prompts, settings, windows, strict=True)):
            how.output_kind = RequestOutputKind.DELTA if window else RequestOutputKind.FINAL_ONLY
            name = f"rollout-{next(_numbers)}"
            under_way[name] = _Answer(place, window)
            engine.add_request(name, tokens_input(list(ids)), how)
        num_steps = 0
        while under_way:
            if num_steps % STEPS_BETWEEN_LOOKS == 0 and should_stop():
                raise StopDrawing
            num_steps += 1
            looped = []
            for output in engine.step():
                answer = under_way.get(output.request_id)
                if answer is None:  # it was aborted, and generated another token meanwhile
                    continue
                answer.ids.extend(output.outputs[0].token_ids)
                if not output.finished and answer.loops():
                    looped.append(output.request_id)
                elif not output.finished:
                    continue
                del under_way[output.request_id]
                found[answer.place] = (answer.ids, None if answer.window else _logprobs(output))
            if looped:
                engine.abort_request(looped)
    finally:
        if under_way:
            engine.abort_request(list(under_way))
    return found


def _agreed(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return the question as the processes that hold one model together ask it: all get the same answer.

    They have to take the same steps. The answer goes over vLLM's group of CPUs, beside what its GPUs are doing.
    """
    from vllm.distributed import get_tp_group

    group = get_tp_group().cpu_group

    def ask() -> bool:
        flag = torch.tensor(int(should_stop()))
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=group)
        return bool(flag)

    return ask


def _interruptibly(work: Callable[[], Any], should_stop: Callable[[], bool]) -> Any:
    """Return what a request to a server returns. Raises StopDrawing when `should_stop` says so.

    The request is then left to itself; it ends with this process.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="vllm-server", daemon=True).start()
    while not wait([result], SECONDS_BETWEEN_LOOKS).done:
        if should_stop():
            raise StopDrawing
    return result.result()


def _logprobs(output: Any) -> list[float | None] | None:
    found, _ = extract_logprobs([output])
    return None if found is None else [token[0] for token in found[0]]


def _repeats(prompts: Sequence[list[int]]) -> int:
    """Return how often each prompt stands beside itself, if all do so equally often; else 1."""
    count = next((place for place, ids in enumerate(prompts) if ids != prompts[0]), len(prompts))
    whole = len(prompts) % count == 0
    return count if whole and all(ids == prompts[i // count * count] for i, ids in enumerate(prompts)) else 1
