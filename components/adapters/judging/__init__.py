"""A judge in use: which model it is, what it is asked about two answers, and what it said.

`finding` finds the model, `opening` its engine, `asking` asks it, `batching` lets many ask at once. `client` and
`reward` are the other side: they ask a judge that `reasrm serve` serves.
"""
