"""Checks of what a run needs, before it needs it: small functions that return findings.

`reasrm doctor` makes them from a desk, `pipeline.preflight` from within a run. None of them costs anything, none shows
a secret, and none waits long.
"""
