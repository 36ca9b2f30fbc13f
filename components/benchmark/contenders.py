"""Who judges: the run's own models, the champion if there is one, and the other judges of the settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from components.adapters.engines import Engine, open_engine
from components.adapters.models import fingerprint, pick_precision, resolve
from components.adapters.registry import MODEL_TAG, find_artifact, grammar_of
from components.adapters.scalars import open_scorer
from components.adapters.stage import Inputs, Output
from components.adapters.teachers.http import headers_with_key
from components.benchmark.against import NONE
from components.benchmark.config import Config
from components.benchmark.judge import Judge, ScoredJudge, WrittenJudge
from components.benchmark.keys import endpoint_key, local_key, scalar_key
from components.core.errors import Transient
from components.core.judges import EndpointJudge, GenerativeJudge, ScalarEndpointJudge, ScalarJudge
from components.core.manifest import Manifest
from components.core.teachers import Price
from components.core.verdict import Grammar

if TYPE_CHECKING:
    from components.adapters.storage import Storage

CHAMPION = "champion"
JUDGES = "judges"
"""Folder of the work directory that takes copies of models."""


@dataclass(frozen=True)
class Contender:
    """A judge with its name in tables and its key in the verdict store; `digest` is that of a model of ours.

    `dollars_per_hour` is what an hour of all of its GPUs costs.
    """

    name: str
    key: str
    judge: Judge
    price: Price | None = None
    dollars_per_hour: float | None = None
    digest: str = ""


def contenders(config: Config, inputs: Inputs, output: Output) -> list[Contender]:
    """Return all judges, none of them opened; first the run's own models, then the champion, then the others.

    Raises InvalidInput when a model is not there.
    """
    maker = _Maker(config, inputs, output)
    found = [maker.own(name) for name in config.models]
    champion = _champion(config, output)
    if champion is not None and champion.digest not in {contender.digest for contender in found}:
        found.append(maker.champion(champion))
    return found + [maker.other(judge) for judge in config.judges]


class _Maker:
    def __init__(self, config: Config, inputs: Inputs, output: Output) -> None:
        self.config, self.inputs, self.output = config, inputs, output
        self.precision = output.once("precision", lambda: pick_precision(config.precision))
        price, gpus = config.dollars_per_gpu_hour, config.tensor_parallel if config.engine == "vllm" else 1
        self.dollars = None if price is None else price * gpus

    def own(self, name: str) -> Contender:
        if name == "base":
            return self._model(name, self.config.base_model, self.config.grammar)
        digest = self.inputs[name].digest
        judge = self._written(lambda: self.inputs.fetch(name) / "model", self.config.grammar)
        return self._local(name, digest, judge, ours=True)

    def champion(self, manifest: Manifest) -> Contender:
        grammar = grammar_of(manifest, self.output.storage) or self.config.grammar
        judge = self._written(self._download(CHAMPION, manifest.uri), grammar)
        return self._local(CHAMPION, manifest.digest, judge, ours=True)

    def other(self, settings: GenerativeJudge | EndpointJudge | ScalarJudge | ScalarEndpointJudge) -> Contender:
        if isinstance(settings, GenerativeJudge):
            found = self._model(settings.name, settings.model, settings.grammar or self.config.grammar)
            return replace(found, price=settings.price, dollars_per_hour=settings.dollars_per_gpu_hour or self.dollars)
        judge: Judge
        if isinstance(settings, EndpointJudge | ScalarEndpointJudge):
            headers_with_key(settings.calls.api_key_env)  # a missing key is to be said before hours of judging
        if isinstance(settings, EndpointJudge):
            judge = WrittenJudge(lambda: _endpoint(settings), settings.grammar or self.config.grammar, self.config)
            key = endpoint_key(settings, self.config)
        else:
            storage, directory = self.output.storage, self.output.workdir / JUDGES / settings.name
            judge = ScoredJudge(
                lambda: open_scorer(settings, storage, directory, self.precision),
                streams=isinstance(settings, ScalarEndpointJudge),
            )
            digests = [_digest(reference, storage) for reference in settings.references]
            key = scalar_key(settings, digests, self.precision)
        return Contender(settings.name, key, judge, settings.price, settings.dollars_per_gpu_hour)

    def _model(self, name: str, reference: str, grammar: Grammar) -> Contender:
        digest = _digest(reference, self.output.storage)
        judge = self._written(self._download(name, reference), grammar)
        return self._local(name, digest, judge)

    def _local(self, name: str, digest: str, judge: Judge, *, ours: bool = False) -> Contender:
        key = local_key(digest, self.config, self.precision)
        return Contender(name, key, judge, dollars_per_hour=self.dollars, digest=digest if ours else "")

    def _download(self, name: str, reference: str) -> Callable[[], Path]:
        return lambda: resolve(reference, self.output.storage, self.output.workdir / JUDGES / name)

    def _written(self, folder: Callable[[], Path], grammar: Grammar) -> WrittenJudge:
        config = self.config

        def load() -> Engine:
            return open_engine(
                config.engine,
                folder(),
                precision=self.precision,
                batch_size=config.batch_size,
                max_model_tokens=config.max_model_tokens,
                tensor_parallel=config.tensor_parallel,
                memory_fraction=config.memory_fraction,
            )

        return WrittenJudge(load, grammar, config)


def _digest(reference: str, storage: "Storage") -> str:
    """Return the sha256 of a model's content, or of what pins it on the hub. Raises InvalidInput without a model."""
    return str(fingerprint(reference, storage)[0]["sha256"])


def _endpoint(settings: EndpointJudge) -> Engine:
    from components.adapters.engines.openai import OpenAIEngine

    endpoint = settings.endpoint()
    return OpenAIEngine(endpoint, endpoint.calls, send_temperature=settings.send_temperature)


def _champion(config: Config, output: Output) -> Manifest | None:
    """Return the champion's artifact, the one that went into the run key.

    Raises Transient when the alias has moved since then.
    """
    known = {source["uri"]: source["sha256"] for source in output.sources}
    if not config.champion or known.get(config.champion) == NONE:
        return None
    manifest = find_artifact(config.champion, output.storage, MODEL_TAG)
    if manifest is None or manifest.digest != known.get(config.champion):
        raise Transient(f"{config.champion} has moved since the stage began; run again to judge the new one")
    return manifest
