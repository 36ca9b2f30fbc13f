"""Checkpoints of a training run in S3: saved while it goes on, found again by the one that restarts."""

from components.adapters.checkpoints.run import Checkpoints

__all__ = ["Checkpoints"]
