"""Settings of the GRPO stage."""

from typing import Self

from pydantic import Field, model_validator

from components.core.training import TrainingConfig
from components.core.verdict import Grammar


class Config(TrainingConfig):
    """GRPO with the verdict reward; defaults from RM-R1 (arXiv 2505.02387, appendix E and rl settings)."""

    grammar: Grammar = Field("rubric", description="Form of the judgment that the prompt asks for.")
    learning_rate: float = Field(1e-6, gt=0, description="Constant learning rate.")
    steps: int = Field(62, ge=1, description="Optimizer steps.")
    prompts_per_step: int = Field(1024, ge=1, description="Different judge prompts in one step.")
    num_generations: int = Field(7, ge=2, description="Rollouts per prompt: the group that advantages compare.")
    micro_batch_size: int = Field(7, ge=1, description="Completions in one forward and backward pass, per device.")
    rollout_batch_size: int = Field(64, ge=1, description="Prompts generated at once by the transformers engine.")
    max_prompt_tokens: int = Field(4096, ge=16, description="Longest prompt; longer ones are dropped and counted.")
    max_completion_tokens: int = Field(8192, ge=8, description="Longest completion; one that reaches it is truncated.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of the rollouts.")
    beta: float = Field(1e-3, ge=0, description="Weight of the k3 KL divergence to the SFT model.")
    epsilon: float = Field(0.2, gt=0, lt=1, description="Clipping range of the probability ratio.")

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        rollouts = self.prompts_per_step * self.num_generations
        if rollouts % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} must divide prompts_per_step x num_generations = {rollouts}"
            )
        return self
