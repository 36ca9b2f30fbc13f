"""Benchmark: the base, SFT and GRPO models and any other judges judge the same pairs, in both orders, side by side.

In:   the held-out part of the pairs, the SFT and GRPO models; from the settings the base model, benchmarks
      (RewardBench 1 and 2, RM-Bench, RMB, JudgeBench, pairs of your own), other judges, the registered champion.
Out:  `scores.json` (every score with its interval and protocol), `verdicts/<judge>.jsonl.gz` (every judgment),
      `report.html`, `report.md`, and `quarantine.jsonl` (rows of benchmarks that could not be read).
Cost: one generation a judge, pair, order and vote. What a judge has said is kept by judge, not by run: a killed run, a
      new suite or last week's champion asks only what was never asked.
Parts: tasks that answer a share of the questions each, before the stage (`part.py`, `components/adapters/part.py`).
"""
