"""Options of the commands that use a judge: which model it is, what runs it, how it is asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from components.adapters.judging.asking import Asking
    from components.adapters.judging.opening import Opener

Command = TypeVar("Command", bound=Callable[..., Any])

MODELS = """\b
MODEL is one of
  reasrm-demo/3  reasrm-demo@champion  reasrm-demo     a registered version; the last is the newest
  s3://bucket/path                                     an artifact of sft or grpo
  ./folder                                             a folder with config.json and *.safetensors
  org/name@<40 hex digits>                             a model on the hub, its revision pinned
  with --base-url: the model's name, as the endpoint calls it
"""

OPTIONS = (
    click.option("--model", required=True, metavar="MODEL", help="The judge; see below."),
    click.option(
        "--engine",
        type=click.Choice(["transformers", "vllm"]),
        default="transformers",
        show_default=True,
        help="What runs a model of this machine; vllm wants a GPU.",
    ),
    click.option("--base-url", default="", metavar="URL", help="An OpenAI-compatible endpoint that runs it instead."),
    click.option("--api-key-env", default="", metavar="NAME", help="Variable with the endpoint's key."),
    click.option("--extra-body", default="{}", metavar="JSON", help="Further fields of requests to the endpoint."),
    click.option("--max-completion-tokens", is_flag=True, help="The endpoint's name for the limit (OpenAI's models)."),
    click.option("--no-temperature", is_flag=True, help="Send the endpoint no temperature; some models refuse it."),
    click.option("--concurrency", default=8, show_default=True, type=click.IntRange(1, 1024), help="Calls at once."),
    click.option(
        "--grammar",
        type=click.Choice(["rubric", "think"]),
        default=None,
        help="Form of the judgment. [what the model was trained on, else rubric]",
    ),
    click.option(
        "--votes", default=1, show_default=True, type=click.IntRange(1, 64), help="Judgments in each of both orders."
    ),
    click.option("--temperature", default=0.0, show_default=True, help="Of sampling; votes over 1 want about 1.0."),
    click.option(
        "--max-tokens",
        default=8192,
        show_default=True,
        type=click.IntRange(8),
        help="Most in one judgment.",
    ),
    click.option(
        "--loop-tokens", default=512, show_default=True, type=click.IntRange(0), help="A loop so long ends it; 0: none."
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of sampling."),
    click.option(
        "--precision",
        type=click.Choice(["auto", "bf16", "fp32"]),
        default="auto",
        show_default=True,
        help="Of a model on this machine; auto takes what is faster here.",
    ),
    click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1), help="Of transformers."),
    click.option("--max-model-tokens", default=None, type=click.IntRange(64), help="Prompt and judgment together."),
    click.option("--tensor-parallel", default=1, show_default=True, type=click.IntRange(1), help="GPUs, for vllm."),
    click.option("--memory-fraction", default=0.9, show_default=True, help="Of the GPU's memory, for vllm."),
    click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path(".reasrm"),
        show_default=True,
        help="Folder of the local servers, and of copies of models.",
    ),
)


def judge_options(command: Command) -> Command:
    """Add the options; the command gets them all as keywords, which `found_judge` takes as they are."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def found_judge(options: dict[str, Any]) -> tuple["Opener", "Asking", str, str]:
    """Return what opens the judge, how it is asked, its name, and the digest of its files (of an endpoint: none).

    Raises InvalidInput for settings that do not go together or a model that is not there.
    """
    from components.adapters.judging.asking import Asking
    from components.adapters.judging.opening import EngineSettings, Opener
    from components.core.errors import InvalidInput
    from components.core.records import explain

    base_url = options["base_url"]
    try:
        settings = EngineSettings.model_validate(
            {
                "kind": "endpoint" if base_url else options["engine"],
                "base_url": base_url,
                "extra_body": json.loads(options["extra_body"]),
                "token_field": "max_completion_tokens" if options["max_completion_tokens"] else "max_tokens",
                "send_temperature": not options["no_temperature"],
                "calls": {"api_key_env": options["api_key_env"], "concurrency": options["concurrency"]},
                **{name: options[name] for name in _ENGINE},
            }
        )
        asking = Asking.model_validate({name: options[name] for name in _ASKING} | {"grammar": "rubric"})
    except ValueError as error:
        raise InvalidInput(explain(error)) from error
    model: str | Path = options["model"]
    name, digest, grammar = str(model), "", None
    if not base_url:
        found = _find(str(model), options["directory"].absolute())
        model, name, digest, grammar = found.folder, found.name, found.digest, found.grammar
    asking = asking.model_copy(update={"grammar": options["grammar"] or grammar or "rubric"})
    return Opener(settings, model), asking, name, digest


_ENGINE = ("precision", "batch_size", "max_model_tokens", "tensor_parallel", "memory_fraction")
_ASKING = ("votes", "temperature", "max_tokens", "loop_tokens", "seed")


def _find(reference: str, directory: Path) -> Any:
    """Return the model, asking the servers of the environment, or else those of the folder."""
    import os

    from components.adapters.judging.finding import find_model, needs_services
    from components.adapters.storage import Storage
    from components.core.errors import InvalidInput
    from pipeline.commands.lineage import SERVERS

    outside = any(os.environ.get(name) for name in SERVERS)
    here = needs_services(reference) and not outside and directory.is_dir()
    if needs_services(reference) and not (outside or here or reference.startswith("s3://")):
        raise InvalidInput(
            f"there is no model folder {reference!r}; for a registered version set MLFLOW_TRACKING_URI, or give the "
            f"folder of a local run as --dir ({directory} does not exist)"
        )
    if not here:
        return find_model(reference, Storage.from_env(), directory / "judges")
    from pipeline.local import serving

    with serving(directory):
        return find_model(reference, Storage.from_env(), directory / "judges")
