"""GRPO: let the fine-tuned judge write its own judgments, and reinforce those that end with the right verdict.

In:   the RL part of the pairs (the filter's choice of them, where it made one) and the SFT model.
Out:  `model/`, the last policy or the best on held-out pairs, and `metrics.jsonl`, one row an RL step: each reward, KL
      to the SFT model, entropy, lengths, rates of valid and truncated judgments, held-out evaluations.
Cost: per RL step one rollout of prompts x generations completions, one pass of the reference over them, and one
      forward and backward pass, divided into `updates_per_step` updates; the dearest stage.

All of it runs on every process that trains. `schedule` says which pairs an RL step has, `rollouts` and `vllm_rollouts`
write the judgments, `draw` replaces pairs that teach nothing, `trainer` hands them to TRL in the micro batches of
`batches`, `evaluation` judges held-out pairs on the way, and `collapse` ends a run that has left its bounds.
"""
