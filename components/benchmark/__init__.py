"""Benchmark: base, SFT and GRPO models judge the same held-out pairs, in both orders.

In:   the held-out part of the pairs, the SFT and GRPO models, and the base model they came from.
Out:  `verdicts.jsonl` (every judgment with its verdict) and `scores.json` (each score with its interval).
Cost: one generation per model, pair and order; verdicts are committed in shards, so a killed run judges no pair twice.
"""
