"""Real preference data and real judgments through prepare, traces and filter: what is kept, and what is caught.

    python -m benchmarks.real_data --data DIR

DIR holds train/*.jsonl.gz (pairs), traces/*.jsonl.gz (judgments with their reasons) and benchmarks/ (RM-Bench, RMB,
LLMBar). Two runs of the real stages, each as the command that a pod runs, over an embedded S3 server:

1. `prepare` on four training files, kept apart from the three benchmarks.
2. `prepare` on the pairs of two judged sets and of LLMBar itself, whose pairs must all be caught; `traces` from the
   recordings by a cascade of judges, and `filter`. These pairs are kept apart from RM-Bench, RMB and LLMBar's own
   questions; its `Processed` part holds 66 of the 80 questions that were judged, and a run before shows what that
   part leaves of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.core.manifest import Manifest
from pipeline.services import BUCKET, Services

TRAIN = ("mmlu_pro_permissive", "evouna_qa", "gsm8k", "hh_harmless")
FORMATS = {"hh_harmless": "hh-rlhf"}
JUDGED = ("qlora_vicuna80", "prd_vicuna80", "llmbar_cot")
OWN = ("LLMBar/Adversarial/GPTInst", "LLMBar/Adversarial/GPTOut", "LLMBar/Adversarial/Manual",
       "LLMBar/Adversarial/Neighbor", "LLMBar/Natural", "CaseStudy/Base_10", "CaseStudy/Base_9",
       "CaseStudy/Constraint", "CaseStudy/Negation", "CaseStudy/Normal")  # fmt: skip
CASCADE = (("qlora_vicuna80", "gpt-4-0314"), ("prd_vicuna80", "gpt-4-0314"), ("prd_vicuna80", "claude-1"))


class Stages:
    """Runs stages as commands, in a scratch folder."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory, self.environment = directory, environment

    def run(self, stage: str, name: str, config: Mapping[str, Any], **inputs: Path) -> tuple[Path, dict[str, Any]]:
        """Run a stage; return its manifest's path and its statistics, and print how long it took."""
        settings, output = self.directory / f"{name}.config.json", self.directory / f"{name}.json"
        settings.write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", f"components.{stage}", "--config", str(settings), "--output", str(output)]
        command += ["--artifact-root", f"s3://{BUCKET}/real"]
        if inputs:
            command += ["--inputs", *(f"{key}={path}" for key, path in inputs.items())]
        began = time.perf_counter()
        done = subprocess.run(command, env=dict(self.environment), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        print(f"\n## {name}: {time.perf_counter() - began:.1f} s")
        return output, dict(Manifest.from_bytes(output.read_bytes()).statistics)


def benchmarks(data: Path, *, processed: bool) -> list[dict[str, Any]]:
    """Return the three benchmarks, LLMBar with or without the part that repeats other benchmarks' questions."""
    llmbar: dict[str, Any] = {"name": "LLMBar", "uri": str(data / "benchmarks" / "eval_llmbar.jsonl.gz")}
    if not processed:
        llmbar["select"] = {"keep": {"category": OWN}}
    return [
        {"name": "RM-Bench", "uri": str(data / "benchmarks" / "rm-bench"), "format": "rm-bench"},
        {"name": "RMB", "uri": str(data / "benchmarks" / "rmb"), "format": "rmb"},
        llmbar,
    ]


def main() -> None:
    """Run both and print the stages' statistics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train/, traces/ and benchmarks/")
    data = parser.parse_args().data.resolve()
    with tempfile.TemporaryDirectory() as folder, Services(Path(folder) / "services", mlflow=False) as services:
        directory = Path(folder)
        named = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
        environment = named | services.environment() | {"REASRM_WORKDIR": str(directory / "work")}
        stages = Stages(directory, environment)

        train = [
            {"uri": str(data / "train" / f"train_{name}.jsonl.gz"), "format": FORMATS.get(name, "pairs")}
            for name in TRAIN
        ]
        _, found = stages.run("prepare", "train", {"sources": train, "benchmarks": benchmarks(data, processed=True)})
        print(json.dumps(found, indent=1))

        judged = [{"uri": str(data / "traces" / f"traces_{name}.jsonl.gz"), "format": "judgments"} for name in JUDGED]
        shares = {"sources": judged, "distil_share": 0.6, "heldout_share": 0.2, "seed": 1}
        _, found = stages.run("prepare", "judged", shares | {"benchmarks": benchmarks(data, processed=True)})
        print(json.dumps(found, indent=1))
        pairs, found = stages.run("prepare", "judged-own", shares | {"benchmarks": benchmarks(data, processed=False)})
        print(json.dumps(found, indent=1))
        teacher = [
            {"kind": "recorded", "uri": str(data / "traces" / f"traces_{name}.jsonl.gz"), "format": "judgments",
             "judge": judge}
            for name, judge in CASCADE
        ]  # fmt: skip
        config = {"teacher": teacher, "grammar": "think", "both_orders": True, "max_failed_fraction": 1.0}
        traces, found = stages.run("traces", "traces", config, pairs=pairs)
        print(json.dumps(found, indent=1))
        _, found = stages.run("filter", "filter", {"grammar": "think", "min_yield": 0.1}, pairs=pairs, traces=traces)
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
