"""Pairs in, reasoning traces out: a teacher judges every pair of `distil` in writing, without being shown the label.

In   pairs: distil.jsonl of `prepare`.
Out  traces.jsonl (a Trace a line, in the order of the pairs), failures.jsonl (pairs without one, and why).
Cost one call to the teacher for each pair, about 1,000 tokens written. An answer is kept as soon as it is there, so no
     call is paid for twice, however often the stage is killed and started again.
"""
