"""The outside world, one file each: S3, MLflow, teachers, engines, progress, and the one way into a stage."""
