"""`reasrm upload`."""

from pathlib import Path

import click


@click.command(
    epilog="\b\nExamples:\n"
    "  reasrm upload my-model/ s3://reasrm/models/my-model\n"
    "  reasrm upload samples/pairs.jsonl.gz s3://reasrm/data/pairs.jsonl.gz\n"
    "  reasrm upload tiny-random s3://reasrm/models/tiny-random\n"
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("uri")
def upload(source: Path, uri: str) -> None:
    """Put a model or data on S3, where the pods of a run find it.

    SOURCE is a model's folder (config.json and *.safetensors), a data file, a folder of data files, or the name of a
    model that is made on the spot (SmolLM2-135M-Instruct, tiny-random). The S3 server and its keys are those of the
    environment: AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
    """
    from components.adapters.storage import Storage
    from pipeline.upload import upload as copy

    place = copy(source, uri, Storage.from_env(), lambda what: click.echo(what, err=True))
    click.echo(place)
