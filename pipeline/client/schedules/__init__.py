"""Schedules as code: a file of schedules, what a server has of them, the difference, and how it is made none."""
