"""The pipeline's exit handler: closes the run of the whole pipeline in MLflow, however the pipeline ended.

It is no stage: it has no artifact and no configuration, and it never makes a run fail.
"""
