"""Settings of the GRPO stage."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from components.core.rewards import RewardSettings
from components.core.training import TrainingConfig
from components.core.verdict import Grammar


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RolloutSettings(_Section):
    """What writes the completions that are trained on."""

    engine: Literal["transformers", "vllm"] = Field("transformers", description="What generates; vllm needs a GPU.")
    batch_size: int = Field(64, ge=1, description="Prompts that the transformers engine generates at once.")
    mode: Literal["colocate", "server"] = Field(
        "colocate", description="Where vLLM runs: on the GPUs that train, or as a server of its own (see server_url)."
    )
    memory_fraction: float = Field(0.3, gt=0, lt=1, description="Share of a GPU's memory that colocated vLLM takes.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that hold one copy of the model in colocated vLLM.")
    sleep: bool = Field(True, description="Colocated vLLM gives its memory back while the model trains.")
    server_url: str | None = Field(
        None,
        pattern="^https?://",
        description="Address of the vLLM server: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config "
        '\'{"backend": "nccl"}\' --logprobs-mode processed_logprobs --max-logprobs -1',
    )

    @model_validator(mode="after")
    def _server_has_an_address(self) -> Self:
        if self.engine == "vllm" and self.mode == "server" and self.server_url is None:
            raise ValueError('mode "server" needs server_url, the address of the vLLM server')
        if self.server_url is not None and (self.engine != "vllm" or self.mode != "server"):
            raise ValueError('server_url goes with engine "vllm" and mode "server" only')
        return self


class EvaluationSettings(_Section):
    """Held-out pairs that are judged greedily, in both orders, while the policy trains."""

    every: int = Field(0, ge=0, description="RL steps between two evaluations; 0: never.")
    pairs: int = Field(256, ge=1, description="Pairs taken out of the RL pairs for it; they are never trained on.")
    keep: Literal["last", "best"] = Field(
        "last", description="Which checkpoint becomes the model: the last, or the one of the best strict accuracy."
    )

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if self.keep == "best" and not self.every:
            raise ValueError('keep "best" needs every > 0: without evaluations there is no best checkpoint')
        return self


class StopSettings(_Section):
    """Bounds on the policy; beyond one of them for `patience` RL steps in a row, training stops early.

    They look at means over an RL step: KL and entropy over all its tokens, rates and lengths over all its rollouts.
    """

    max_kl: float | None = Field(None, gt=0, description="KL divergence to the SFT model, nats a token.")
    min_entropy: float | None = Field(None, ge=0, description="Entropy of the next token, nats.")
    max_entropy: float | None = Field(None, gt=0, description="Entropy of the next token, nats.")
    min_completion_tokens: float | None = Field(None, ge=0, description="Mean length of a rollout.")
    max_invalid_rate: float | None = Field(None, ge=0, le=1, description="Share of rollouts without a verdict.")
    max_truncated_rate: float | None = Field(None, ge=0, le=1, description="Share of rollouts that hit their limit.")
    patience: int = Field(3, ge=1, description="RL steps in a row beyond a bound before training stops.")

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        if self.min_entropy is not None and self.max_entropy is not None and self.min_entropy >= self.max_entropy:
            raise ValueError(f"min_entropy {self.min_entropy} must be below max_entropy {self.max_entropy}")
        return self


class Config(TrainingConfig):
    """GRPO on rewards that a program can check; defaults from RM-R1 (arXiv 2505.02387, appendix E, and its scripts).

    An RL step is one rollout of prompts_per_step x num_generations completions, then updates_per_step optimizer steps.
    Everything that counts steps here (steps, save_steps, evaluation.every, stop.patience, logs) counts RL steps.
    """

    grammar: Grammar = Field("rubric", description="Form of the judgment that the prompt asks for.")
    learning_rate: float = Field(1e-6, gt=0, description="Constant learning rate.")
    steps: int | None = Field(None, ge=1, description="RL steps; absent: one pass over the prompts.")
    prompts_per_step: int = Field(1024, ge=1, description="Different judge prompts in one RL step, over all processes.")
    num_generations: int = Field(7, ge=2, description="Rollouts per prompt: the group that advantages compare.")
    updates_per_step: int = Field(
        1,
        ge=1,
        description="Optimizer steps on one rollout, each on other prompts with all their rollouts; where processes x "
        "updates_per_step does not divide prompts_per_step, each on a part of the rollouts of every prompt.",
    )
    micro_batch_size: int = Field(7, ge=1, description="Completions in one forward and backward pass, per device.")
    orders: Literal["one", "both"] = Field(
        "one", description="Show each pair in its own order, or in both, always in the same RL step."
    )
    max_prompt_tokens: int = Field(4096, ge=16, description="Longest prompt; longer ones are dropped and counted.")
    max_completion_tokens: int = Field(8192, ge=8, description="Longest completion; one that reaches it is truncated.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of the rollouts.")
    loss: Literal["bnpo", "dapo", "dr_grpo", "grpo"] = Field(
        "bnpo",
        description="How token losses are averaged: over the tokens of a micro batch (bnpo), of all rollouts (dapo), "
        "over completions first (grpo), or divided by a constant (dr_grpo).",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="Whose standard deviation advantages are divided by; none leaves them as they are."
    )
    beta: float = Field(1e-3, ge=0, description="Weight of the k3 KL divergence to the SFT model; 0: no reference.")
    epsilon: float = Field(0.2, gt=0, lt=1, description="Clipping range of the probability ratio.")
    epsilon_high: float | None = Field(None, gt=0, description="Upper clipping range; absent: epsilon.")
    mask_truncated: bool = Field(False, description="Leave truncated completions out of the loss.")
    rollout_correction: bool = Field(
        False, description="Truncated importance weights for what vLLM's probabilities differ from the trainer's."
    )
    resample_rounds: int = Field(
        0, ge=0, description="How often pairs whose groups all have equal rewards are replaced by fresh ones."
    )
    rewards: RewardSettings = Field(RewardSettings(), description="Weights of the rewards that are added up.")
    rollouts: RolloutSettings = Field(RolloutSettings(), description="What generates the rollouts.")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="Held-out evaluations while training.")
    stop: StopSettings = Field(StopSettings(), description="Bounds that end training early.")

    @property
    def unit_size(self) -> int:
        """Return how many prompts a pair has: its orders."""
        return 2 if self.orders == "both" else 1

    def decisive(self) -> dict[str, Any]:
        """Return the settings that the result depends on: where and in how much memory vLLM runs is not among them."""
        found = super().decisive()
        for name in ("memory_fraction", "tensor_parallel", "sleep", "server_url"):
            del found["rollouts"][name]
        return found

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        rollouts = self.prompts_per_step * self.num_generations
        if rollouts % (self.updates_per_step * self.micro_batch_size):
            raise ValueError(
                f"updates_per_step x micro_batch_size = {self.updates_per_step} x {self.micro_batch_size} must divide "
                f"prompts_per_step x num_generations = {rollouts}"
            )
        if self.prompts_per_step % self.unit_size:
            raise ValueError(
                f"prompts_per_step is {self.prompts_per_step}, and with both orders of each pair it must be even"
            )
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if self.rewards.overlong_tokens >= self.max_completion_tokens:
            raise ValueError(
                f"rewards.overlong_tokens {self.rewards.overlong_tokens} must be below max_completion_tokens "
                f"{self.max_completion_tokens}: it counts back from there"
            )
        if self.rewards.consistency and self.orders != "both":
            raise ValueError('rewards.consistency compares the two orders of a pair: set orders = "both"')
        if self.epsilon_high is not None and self.epsilon_high < self.epsilon:
            raise ValueError(f"epsilon_high {self.epsilon_high} must not be below epsilon {self.epsilon}")
        if self.rollout_correction and self.rollouts.engine != "vllm":
            raise ValueError('rollout_correction goes with rollouts.engine "vllm": only vLLM tells its probabilities')
        if self.stop.max_kl is not None and not self.beta:
            raise ValueError("stop.max_kl needs beta > 0: without a reference no KL divergence is measured")
        return self
