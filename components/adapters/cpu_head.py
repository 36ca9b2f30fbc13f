"""Score only the positions that count, where TRL scores all of them.

TRL's fused language-model head leaves out masked positions on GPUs only. Elsewhere it multiplies every position, prompt
included, with the whole vocabulary in fp32, forward and backward; with long judge prompts and short judgments that is
most of the head's work for nothing. `benchmarks/sft_step.py` measures the difference.
"""

import types
from typing import Any

import torch
from torch.nn import functional
from trl.trainer.utils import FusedCausalLMOutput


def score_learned_positions_only(model: Any, temperature: float = 1.0) -> None:
    """Replace the fused head of a model on a CPU; a model on a GPU is left as it is.

    The results are those of TRL's head: log-probabilities, entropy and top-1 hits of shape (batch, length - 1), zero
    where the label is -100. Entropy carries no gradient.
    """
    if next(model.parameters()).device.type != "cpu":
        return
    original = model.forward

    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head or labels is None:
            return original(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        num_items = kwargs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        mask = labels != -100
        logits = self.get_output_embeddings()(hidden[mask]).float() / temperature
        scored = -functional.cross_entropy(logits, labels[mask], reduction="none")
        with torch.no_grad():
            entropy = torch.distributions.Categorical(logits=logits, validate_args=False).entropy()
            hits = (logits.argmax(-1) == labels[mask]).to(scored.dtype)

        def spread(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        log_probs = spread(scored)
        total = mask.sum().clamp(min=1) if num_items is None else num_items
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / total,
            log_probs=log_probs,
            entropy=spread(entropy),
            is_top1=spread(hits),
            label_mask=mask,
        )

    model.forward = types.MethodType(forward, model)
