"""The pipeline as Kubernetes objects, for a Git repository that a cluster follows.

Kubeflow Pipelines takes them where its API server keeps pipelines in Kubernetes (from 2.14 on, off by default).
"""

import re
import tempfile
from pathlib import Path

from components.core.errors import InvalidInput
from pipeline.compiler import HASH_CHARS, arguments_for, compile_pipeline, pipeline_for, version_hash
from pipeline.config import RunConfig
from pipeline.dag import NAME
from pipeline.placement import NO_VERSION
from pipeline.profile import Profile

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
MAX_NAME_CHARS = 63 - HASH_CHARS - 1  # the version's name fits into a label too


def gitops_manifests(config: RunConfig, profile: Profile, pipeline_name: str = NAME, namespace: str = "") -> bytes:
    """Return a Pipeline and a PipelineVersion as YAML; equal recipes and profiles give equal bytes.

    The version's name ends in the hash of the pipeline that it holds, as a submitted one's does: a version can not be
    changed, so new content is a new version.
    `namespace` empty: whoever applies them says where. Raises InvalidInput on a name that Kubernetes refuses, and as
    `compile_pipeline` does.
    """
    from kfp import compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    for what, name, most in (
        ("pipeline name", pipeline_name, MAX_NAME_CHARS),
        ("namespace", namespace or "default", 63),
    ):
        if not DNS_LABEL.fullmatch(name) or len(name) > most:
            raise InvalidInput(
                f"the {what} {name!r} is no name for Kubernetes: give at most {most} characters of a-z, 0-9 and '-', "
                "with a letter or digit at both ends"
            )
    unknown = f"{pipeline_name}-{'0' * HASH_CHARS}"
    options = KubernetesManifestOptions(
        pipeline_name=pipeline_name,
        pipeline_version_name=unknown,
        namespace=namespace or None,
        include_pipeline_manifest=True,
    )
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pipeline.yaml"
        compiler.Compiler().compile(
            pipeline_for(config, profile),
            str(path),
            pipeline_parameters=arguments_for(config, profile),
            kubernetes_manifest_format=True,
            kubernetes_manifest_options=options,
        )
        data = path.read_bytes()
    version = version_hash(compile_pipeline(config, profile))
    for name in (unknown, NO_VERSION):
        data = data.replace(name.encode(), (name[:-HASH_CHARS] + version).encode())
    return data
