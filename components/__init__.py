"""The stages of the pipeline, what they share (`core`) and how they reach the outside world (`adapters`)."""
