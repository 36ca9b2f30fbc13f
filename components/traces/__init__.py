"""Pairs in, reasoning traces out: teachers judge every pair in writing, and every judgment is graded as it comes.

In   pairs: distil.jsonl of `prepare` (or rl.jsonl, for pass rates).
Out  traces.jsonl (a Trace a line, in the order of the pairs, then by step, then by sample), failures.jsonl (rows
     without a trace, and why).
Cost one call to the first teacher for each pair, order and sample, about 1,000 tokens written; each further teacher of
     a cascade gets the pairs that none before it judged right. An answer is on disk as soon as it is there, and on S3
     within a minute: however often the stage is killed and started again, no answer that is there is paid for twice. A
     disk that is lost takes with it the calls under way and the answers of the last minute. `max_cost` and
     `max_total_tokens` are never crossed by what is on this disk or on S3.
Parts: tasks that ask for a share of the shards each, before the stage (`part.py`, `components/adapters/part.py`).
"""
