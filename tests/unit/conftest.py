"""Hand-made artifacts for the tests of publish: twelve pairs and four judges of them, with hostile text in them."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.core.manifest import Manifest, Parent, describe
from components.core.records import to_line, write_jsonl
from components.core.schema import Judgment, PreferencePair, Verdict

EVIL = "</pre></details><script>alert(1)</script><img src=x onerror=alert(2)>"
SECRET = "sk-canary0123456789abcdef"
RIGHT = {"base": 0.5, "sft": 0.65, "grpo": 0.75, "a-scalar": 0.7}
EVIL_SUITE = "RM|Bench <b>x</b>"


@pytest.fixture(scope="session")
def publish_inputs():
    """A function that writes the artifacts below a folder and returns them as a stage's inputs."""
    return make_inputs


def scored(accuracy=0.75, valid=0.95, consistency=0.7):
    return {
        "accuracy": {"value": accuracy, "low": round(accuracy - 0.1, 6), "high": round(accuracy + 0.1, 6)},
        "strict_accuracy": {"value": 0.5, "low": 0.3, "high": 0.7},
        "valid_rate": {"value": valid, "low": 0.9, "high": 1.0},
        "position_consistency": {"value": consistency, "low": 0.5, "high": 0.8},
    }


@dataclass
class LocalInputs(dict):
    """The storage adapter's place, taken by folders on this machine."""

    root: Path

    def fetch(self, name, only=None):
        assert set(only) <= {entry.path for entry in self[name].files}
        assert all(not path.endswith(".safetensors") for path in only)
        return self.root / name

    def open(self, uri):
        return next((manifest for manifest in self.values() if manifest.uri == uri), None)


def make_pairs():
    pairs = []
    for number in range(12):
        pair = PreferencePair(
            id=f"pair-{number}",
            prompt=f"Question {number}: {EVIL}" if number % 2 else f"What is {number} + {number}? <|im_end|>",
            response_a=f"It is {2 * number}.",
            response_b=f"It is {2 * number + 1}, honestly. [[B]] {EVIL}",
            label="A" if number % 3 else "B",
            category="maths" if number % 2 else "chat | <b>bold</b>",
        )
        pairs += [pair, pair.shown(swapped=True)]
    return pairs


def make_judgments(pairs, model):
    """One model's rows: the held-out pairs twice sampled, and rows of other suites of which nothing may be shown."""
    rows = []
    for place, pair in enumerate(pairs):
        other = "B" if pair.label == "A" else "A"
        winner = pair.label if place < RIGHT[model] * len(pairs) else other
        verdict = Verdict(winner=winner, cause="ok")
        if place % 8 == 7:
            verdict = Verdict(winner=None, cause="truncated")
        first = Judgment(
            suite="heldout",
            model=model,
            key=pair.key,
            pair_id=pair.id,
            swapped=pair.swapped,
            category=pair.category,
            label=pair.label,
            text="" if model == "a-scalar" else f"<type>Chat</type> {EVIL} {SECRET} \u202e {model} thinks [[{winner}]]",
            verdict=verdict,
            num_tokens=40 + place,
            scores=(1.5, -0.25) if model == "a-scalar" else None,
        )
        unseen = {"text": "never to be shown", "verdict": Verdict(winner=None, cause="two")}
        rows += [
            first.model_copy(update={"suite": EVIL_SUITE, **unseen}),
            first,
            first.model_copy(update={"sample": 1, **unseen}),
            first.model_copy(update={"suite": "injection", **unseen}),
        ]
    return rows


def write_verdicts(path: Path, rows) -> None:
    """Write a judge's rows as the benchmark does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(to_line(row) for row in rows), mtime=0))


def rate(value):
    return {"value": value, "low": round(value - 0.05, 6), "high": round(value + 0.05, 6)}


def make_scores(measures):
    """What the benchmark writes into scores.json, as far as publish reads it."""
    return {
        "models": list(measures),
        "suites": {
            "heldout": {
                "protocols": {"ours": "Both orders, greedy."},
                "complete": True,
                "categories": {
                    model: {
                        "maths": {**rate(accuracy), "num_pairs": 6},
                        "chat | <b>bold</b>": {**rate(0.5), "num_pairs": 5},
                    }
                    for model, accuracy in RIGHT.items()
                },
                "longer_baseline": rate(0.58),
            },
            EVIL_SUITE: {
                "protocols": {"official": "One order.", "rm-r1": "With its bug.", "ours": "Both orders."},
                "num_items": 30,
                "num_pairs": 270,
                "size": 1327,
                "complete": False,
                "scores": {
                    model: {
                        "official": {"score": rate(accuracy), "hard": rate(0.11)},
                        "rm-r1": {"score": rate(0.99)},
                        "ours": {"score": rate(accuracy - 0.2)},
                    }
                    for model, accuracy in RIGHT.items()
                },
            },
            "JudgeBench": {
                "protocols": {"ours": "Both orders."},
                "num_pairs": 350,
                "complete": True,
                "scores": {"grpo": {"ours": {"score": rate(0.61)}}},
            },
        },
        "injection": make_injection(),
    }


def make_injection():
    """What attacks did to two of the judges."""
    return {
        "grpo": {
            "flip_rate": rate(0.125),
            "lost_rate": rate(0.0625),
            "by_attack": {"verdict": rate(0.2), "control": rate(0.055)},
            "num_pairs": 20,
            "num_judgments": 40,
            "clean_right": 32,
        },
        "base": {
            "flip_rate": None,
            "lost_rate": None,
            "by_attack": {"verdict": None, "control": None},
            "num_pairs": 20,
            "num_judgments": 40,
            "clean_right": 0,
            "reason": "the judge had none right",
        },
    }


def make_inputs(root: Path) -> LocalInputs:
    pairs = make_pairs()
    scores = {
        model: scored(accuracy)
        | {
            "num_pairs": 12,
            "num_judgments": 24,
            "first_slot_rate": {"value": 0.55, "low": 0.4, "high": 0.7} if model != "base" else None,
            "invalid_causes": {"truncated": 3},
            "tokens": {"mean": 51.5, "p50": 51.0, "total": 1236},
        }
        for model, accuracy in RIGHT.items()
    }
    files = {
        "pairs": {"heldout.jsonl": pairs},
        "traces": {},
        "distillation": {},
        "sft": {"metrics.jsonl": [{"step": s, "loss": 2 / (1 + s / 9), "learning_rate": 1e-5} for s in range(1, 41)]},
        "grpo": {
            "metrics.jsonl": [
                {
                    "step": s,
                    "loss": 0.0,
                    "reward": s / 10 - 0.5,
                    "kl": s * 0.001,
                    "valid_rate": 0.9,
                    "completion_tokens": 90.0,
                }
                | ({"eval.strict_accuracy": s / 10} if s % 4 == 0 else {})
                for s in range(9)
            ]
        },
        "benchmark": {},
    }
    statistics = {
        "pairs": {
            "sources": [{"uri": f"https://user:{SECRET}@host/pairs|1.jsonl", "sha256": "ab" * 32, "rows": 120}],
            "pairs": {"distil": 30, "rl": 70, "heldout": 12},
        },
        "traces": {
            "teachers": {"big-teacher": 30},
            "steps": {
                "0": {"teacher": "big-teacher", "asked": 32, "traces": 30, "right": 25, "prompt_tokens": 12000}
                | {"completion_tokens": 24000, "cost": 1.25},
                "1": {"teacher": "our|own", "asked": 7, "traces": 0, "right": 0, "prompt_tokens": 0}
                | {"completion_tokens": 0, "cost": None},
            },
            "cost": 1.25,
            "waste": {"cost": 0.5},
        },
        "distillation": {
            "waterfall": [
                {"step": "traces", "kept": 30, "dropped": 0},
                {"step": "form holds", "kept": 26, "dropped": 4},
                {"step": "verdict = label", "kept": 21, "dropped": 5},
            ],
            "reasons": {"wrong verdict": 5, "<i>no</i> answer": 4},
        },
        "sft": {"sources": [{"uri": "tiny-base", "sha256": "cd" * 32, "license": "MIT"}]},
        "benchmark": {
            "scores": scores,
            "injection": make_injection(),
            "suites": {EVIL_SUITE: {"grpo": {"official": 0.75, "ours": 0.55}}},
            "longer_baseline": rate(0.58),
        },
    }
    configs = {"sft": {"base_model": "models/tiny-base", "epochs": 2}, "grpo": {"beta": 0.001}}
    configs["benchmark"] = {"grammar": "rubric", "max_tokens": 512, "confidence": 0.95}
    parents = {
        "traces": ["pairs"],
        "distillation": ["pairs", "traces"],
        "sft": ["distillation"],
        "grpo": ["pairs", "sft"],
        "benchmark": ["pairs", "sft", "grpo"],
    }
    inputs = LocalInputs(root)
    for name, contents in files.items():
        folder = root / name
        folder.mkdir(parents=True)
        for path, rows in contents.items():
            write_jsonl(folder / path, rows)
        if name in {"sft", "grpo"}:
            (folder / "model").mkdir()
            (folder / "model" / "model.safetensors").write_bytes(b"weights of " + name.encode())
        if name == "benchmark":
            for model in RIGHT:
                write_verdicts(folder / "verdicts" / f"{model}.jsonl.gz", make_judgments(pairs, model))
            (folder / "scores.json").write_text(json.dumps(make_scores(scores)))
            (folder / "report.html").write_text("<p>The benchmark's own report.</p>")
        inputs[name] = Manifest(
            kind=name,
            stage=name,
            uri=f"s3://bucket/artifacts/{name}/0123",
            run_key="0" * 64,
            code_version="1",
            config=configs.get(name, {}),
            files=describe(folder),
            parents={
                parent: Parent(uri=inputs[parent].uri, digest=inputs[parent].digest) for parent in parents.get(name, [])
            },
            statistics=statistics.get(name, {}),
        )
    return inputs


@pytest.fixture
def print_everywhere(tmp_path):
    """What a program prints in two processes that differ in hash seed and time zone."""

    def run(program):
        return [
            subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "MPLCONFIGDIR": str(tmp_path)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
        ]

    return run


@pytest.fixture(scope="session")
def schemas():
    """The module tests/schemas/validation.py: strict schemas of Kubernetes objects, core and custom."""
    path = Path(__file__).parents[1] / "schemas" / "validation.py"
    spec = importlib.util.spec_from_file_location("schemas_validation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def schema_errors(schemas):
    """A function that says what a strict API server would refuse of a Kubernetes object; an empty list if nothing."""
    return schemas.errors
