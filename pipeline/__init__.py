"""The pipeline as a whole: the DAG, its configuration, where it runs and how one looks at it afterwards."""
