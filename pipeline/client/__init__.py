"""Talking to a Kubeflow Pipelines server: submit runs, watch them, keep schedules."""
