"""Traces in, supervised examples out: a student learns only from traces that finish, keep their form and are right.

In   pairs: distil.jsonl of `prepare` (for the labels and the prompts); traces: traces.jsonl.
Out  sft.jsonl (an Example a line), rejected.jsonl (the other traces, each with all its reasons).
Cost one core, seconds.
"""
