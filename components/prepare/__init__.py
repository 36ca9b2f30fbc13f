"""Preference pairs in, three parts out: `distil` for the teacher, `rl` for GRPO, `heldout` for the benchmark.

In   files of pairs, local or on S3: JSON lines (plain or gzip) or Parquet, in the canonical form (`prompt`,
     `response_a`, `response_b`, `label`) or as `chosen` and `rejected`.
Out  distil.jsonl, rl.jsonl, heldout.jsonl (every pair in both orders), quarantine.jsonl (what was left out, and why).
Cost one core; half a minute for 80,000 pairs; memory for two hashes a pair.
"""
