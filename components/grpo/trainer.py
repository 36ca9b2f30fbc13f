"""TRL's GRPO trainer with this project's rollouts, order of prompts, and micro batches.

Optimizer steps are TRL's steps; an RL step is `updates_per_step` of them on one rollout. Checkpoints lie between RL
steps only, so a resumed run never has to go on within a rollout.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import GRPOConfig, GRPOTrainer

from components.adapters import ranks, training
from components.adapters.cpu_head import score_learned_positions_only
from components.adapters.engines.local import DATE
from components.core.errors import ReasrmError
from components.grpo.batches import score_by_length, split
from components.grpo.config import Config
from components.grpo.draw import Drawing, Unit
from components.grpo.rewards import functions
from components.grpo.rollouts import PolicySampler
from components.grpo.schedule import Schedule, accumulation_steps
from components.grpo.vllm_rollouts import limited_vllm

logger = logging.getLogger(__name__)

NO_SIGNAL_WARNING = 0.8
"""Share of groups without signal above which a step says so: most of its rollouts were for nothing."""
WEIGHED_BY_MICRO_BATCH = ("bnpo",)
"""Losses that depend on which rollouts share a micro batch."""

KEPT = (
    "reward",
    "reward_std",
    "kl",
    "entropy",
    "valid_rate",
    "accuracy",
    "consistent_rate",
    "completion_tokens",
    "truncated_rate",
    "no_signal_rate",
    "drawn_no_signal_rate",
    "num_drawn",
    "num_replaced",
    "clip_ratio/region_mean",
    "sampling/sampling_logp_difference/mean",
    "sampling/importance_sampling_ratio/mean",
)
"""What is logged beside each reward, the loss, the norm of its gradient and the learning rate."""
TOKEN_MEANS = ("kl", "entropy", "clip_ratio/region_mean")
"""Those of them that are means over the tokens of a micro batch; micro batches differ much in length."""


class JudgeTrainer(training.Guarded, GRPOTrainer):
    """GRPO over the units of a schedule.

    Takes the rows to be trained on beside TRL's arguments. TRL itself sees the numbers of micro batches and nothing
    else: what it would load, all rows of an RL step for each of its micro batches, the schedule says.
    """

    length_setting = "max_completion_tokens"

    def __init__(self, *, config: Config, rows: Dataset, schedule: Schedule, sampler: PolicySampler, **kw: Any) -> None:
        num_batches = schedule.num_steps * kw["args"].steps_per_generation * ranks.world_size()
        super().__init__(train_dataset=Dataset.from_dict({"micro_batch": range(num_batches)}), **kw)
        self._config = config
        self._schedule = schedule
        self._sampler = sampler
        sampler.bind(self)
        self._drawing = Drawing(config, rows, schedule, sampler)
        self._units: list[Unit] = []
        self._places: list[list[int]] = []
        self._num_tokens: list[int] = []
        self._place = 0
        self._rolled_out_at = -1
        self._buffered_inputs: Any = None

    @property
    def num_accumulated(self) -> int:
        """Return how many micro batches of this process make one optimizer step."""
        return int(self.args.gradient_accumulation_steps)

    def rows_of_step(self) -> list[list[str]]:
        """Return the keys of the rows in each micro batch that this process has in the running optimizer step."""
        keys = [group.row["key"] for unit in self._units for group in unit.groups for _ in group.drawn]
        first = self._place // self.num_accumulated * self.num_accumulated
        chosen = self._places[first : first + self.num_accumulated]
        return [list(dict.fromkeys(keys[place] for place in places)) for places in chosen]

    def get_train_dataloader(self) -> Any:
        """Return as many empty batches as this process has micro batches."""
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=1,
            sampler_fn=SequentialSampler,
            is_training=True,
        )

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Return the next micro batch; the first of an RL step rolls out all of them."""
        step = self.state.global_step
        self._place = self._step % self.args.steps_per_generation
        if self._place == 0 or self._buffered_inputs is None:
            if step % self._config.updates_per_step:
                raise ReasrmError(f"a rollout would begin within an RL step, at optimizer step {step}")
            self._buffered_inputs, self._places = split(
                self._generate_and_score_completions([]),
                self._config.updates_per_step,
                self.args.per_device_train_batch_size,
                together=(self._config.unit_size * self.num_generations, self.num_generations),
                by_length=self.loss_type not in WEIGHED_BY_MICRO_BATCH,
                multiple=self.pad_to_multiple_of,
            )
            own = torch.stack([batch["completion_mask"].sum() for batch in self._buffered_inputs]).tolist()
            self._num_tokens = [sum(counts) for counts in zip(*ranks.gather(own), strict=True)]
            self._rolled_out_at = step
        if not 0 <= step - self._rolled_out_at < self._config.updates_per_step:
            raise ReasrmError(
                f"rollouts of optimizer step {self._rolled_out_at} would be trained on in optimizer step {step}, after "
                f"more than updates_per_step {self._config.updates_per_step} updates"
            )
        return self._buffered_inputs[self._place]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Roll out this process's share of the RL step, then let TRL score what was kept; `inputs` say nothing."""
        step = self.state.global_step // self._config.updates_per_step
        numbers, first_place = self._schedule.share(step, ranks.rank(), ranks.world_size())
        self.working_on = f"the rollouts of {len(numbers) * self._config.unit_size} prompts"
        self._units, counts = self._drawing.roll_out(step, numbers, first_place)
        self._sampler.rest()
        self._note(asdict(counts))
        rows = [dict(group.row) for unit in self._units for group in unit.groups for _ in group.drawn]
        scored: dict[str, Any] = super()._generate_and_score_completions(rows)
        return scored

    def _note(self, counts: dict[str, Any]) -> None:
        self.state.num_input_tokens_seen += counts.pop("num_tokens")
        for name, value in counts.items():
            self._metrics["train"][name].append(float(value))
        if counts["no_signal_rate"] > NO_SIGNAL_WARNING and ranks.is_main():
            logger.warning(
                "in %.0f %% of the groups all rewards are equal: they teach nothing. The prompts are too easy or too "
                "hard for this policy, or temperature is too low; resample_rounds replaces them",
                100 * counts["no_signal_rate"],
            )

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        """Return what has been rolled out.

        Raises ReasrmError when other weights than the present ones wrote it, or when vLLM told no log-probabilities
        where `rollout_correction` needs them.
        """
        groups = [group for unit in self._units for group in unit.groups]
        drawn = [one for group in groups for one in group.drawn]
        stale = sorted({one.version for one in drawn if one.version != self.state.global_step})
        if stale:
            raise ReasrmError(
                f"rollouts were written by the weights of optimizer steps {stale}, and the policy is at "
                f"{self.state.global_step}: the engine did not get the present weights"
            )
        correct = self._config.rollout_correction
        if correct and any(one.logprobs is None or len(one.logprobs) != one.num_tokens for one in drawn):
            raise ReasrmError(
                "vLLM did not tell the log-probability of every token, which rollout_correction needs; start a server "
                "with --logprobs-mode processed_logprobs --max-logprobs -1, or switch rollout_correction off"
            )
        prompt_ids = [group.prompt_ids for group in groups for _ in group.drawn]
        completions = [[{"role": "assistant", "content": one.text}] for one in drawn]
        logprobs = [list(one.logprobs or ()) for one in drawn] if correct else None
        return prompt_ids, [list(one.token_ids) for one in drawn], None, completions, logprobs, {}, None, []

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with training.phases().measure("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score a whole rollout in narrow batches; a micro batch is narrow already."""
        score: Callable[..., Any] = super()._get_per_token_logps_and_entropies
        if not torch.is_grad_enabled():
            masks = {
                "prompt_mask": attention_mask[:, :-logits_to_keep],
                "completion_mask": attention_mask[:, -logits_to_keep:],
            }
            training.meter().count(masks, backward=False)
        if batch_size is None:
            return score(model, input_ids, attention_mask, logits_to_keep, **kwargs)
        found = score_by_length(
            lambda ids, mask, width: score(model, ids, mask, width, **kwargs)[0],
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size,
            self.pad_to_multiple_of,
        )
        return found, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log under this project's names: the parts of the reward by their own, and no wall-clock profile.

        Of what TRL has one mean for each micro batch, the mean over all tokens of the RL step is logged.
        """
        measured, num_tokens = self._metrics["train"], sum(self._num_tokens)
        for name in TOKEN_MEANS:
            if num_tokens and len(measured.get(name, ())) == len(self._num_tokens):
                weighed = zip(measured[name], self._num_tokens, strict=True)
                measured[name] = [sum(value * num for value, num in weighed) / num_tokens]
        for name in [name for name in measured if name not in KEPT]:
            values = measured.pop(name)
            part = name.removeprefix("rewards/").removesuffix("/mean")
            if name == f"rewards/{part}/mean":
                measured[f"reward.{part}"] = values
        super().log(logs, start_time)


def build_trainer(
    config: Config,
    tokenizer: Any,
    rows: Dataset,
    schedule: Schedule,
    sampler: PolicySampler,
    common: dict[str, Any],
    load: Callable[[], Any],
    callbacks: list[Any],
) -> JudgeTrainer:
    """Return the trainer of this process; `load` gives the model, once the arguments exist that say how.

    Raises InvalidInput when the processes cannot share an RL step.
    """
    arguments = make_arguments(config, schedule.num_steps, common, sampler.context)
    rewards, _ = functions(
        config.rewards, config.max_completion_tokens, lambda: sampler.end_ids, grammar=config.grammar
    )
    with limited_vllm():
        trainer = JudgeTrainer(
            config=config,
            rows=rows,
            schedule=schedule,
            sampler=sampler,
            model=load(),
            args=arguments,
            processing_class=tokenizer,
            reward_funcs=rewards,
            peft_config=training.peft_config(config),
            callbacks=callbacks,
        )
    if arguments.use_cpu:  # DeepSpeed leaves the model in host memory until it trains, on a GPU too
        for wrapped in filter(None, (trainer.model, trainer.ref_model)):
            model = trainer.accelerator.unwrap_model(wrapped)
            score_learned_positions_only(model.get_base_model() if is_peft_model(model) else model, config.temperature)
    return trainer


def make_arguments(config: Config, num_steps: int, common: dict[str, Any], context: int) -> GRPOConfig:
    """Return TRL's arguments; `common` are those that SFT has too. TRL counts optimizer steps.

    `context` is the most tokens that a prompt and its completion may have together.
    """
    updates, accumulated = config.updates_per_step, accumulation_steps(config, ranks.world_size())
    with_vllm = config.rollouts.engine == "vllm"
    given: dict[str, Any] = {
        **common,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "constant",
        "max_steps": num_steps * updates,
        "save_steps": config.save_steps * updates,
        "logging_steps": updates,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": accumulated,
        "steps_per_generation": accumulated * updates,
        "num_generations": config.num_generations,
        "shuffle_dataset": False,
        "max_completion_length": config.max_completion_tokens,
        "chat_template_kwargs": DATE,
        "temperature": config.temperature,
        "loss_type": config.loss,
        "scale_rewards": config.scale_rewards,
        "beta": config.beta,
        "use_bias_correction_kl": False,  # the paper's KL term is not weighted by the probability ratio
        "epsilon": config.epsilon,
        "epsilon_high": config.epsilon_high,
        "mask_truncated_completions": config.mask_truncated,
        "reward_weights": list(config.rewards.weights.values()),
        "log_completions": False,
        "use_vllm": with_vllm,
        "vllm_importance_sampling_correction": config.rollout_correction,
        "vllm_importance_sampling_mode": "token_truncate",
    }
    if common.get("bf16"):
        # The fine-tuned weights were written as bf16: a reference in fp32 would hold the same in twice the space.
        given["model_init_kwargs"] = {"dtype": "bfloat16"}
    if with_vllm:
        rollouts = config.rollouts
        given |= {
            "vllm_mode": rollouts.mode,
            "vllm_server_base_url": rollouts.server_url,
            "vllm_gpu_memory_utilization": rollouts.memory_fraction,
            "vllm_tensor_parallel_size": rollouts.tensor_parallel,
            "vllm_enable_sleep_mode": rollouts.sleep and rollouts.mode == "colocate",
            "vllm_max_model_length": context,
        }
    return GRPOConfig(**given)
