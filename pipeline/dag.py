"""The whole pipeline in one function: who feeds whom, what if nothing is new, and if the gate says no. No logic."""

from contextlib import ExitStack
from typing import Any

from kfp import dsl

from components.benchmark.component import benchmark, benchmark_part
from components.filter.component import filter as filter_traces
from components.grpo.component import grpo
from components.prepare.component import prepare
from components.publish.component import gate, publish
from components.report.component import report
from components.sft.component import sft
from components.traces.component import traces, traces_part
from pipeline.component import preflight
from pipeline.placement import MAX_PARALLEL, Here, Placement

NAME = "reasrm"


def build(placement: Placement | None = None) -> Any:
    """Return the pipeline; `placement` says where each task runs (default: on this machine)."""
    where = placement or Here()

    @dsl.pipeline(name=NAME, display_name="Reasoning reward model")
    def reasrm(
        preference_data: str,
        benchmarks: str,
        base_model: str,
        teacher: str,
        grammar: str,
        model_name: str,
        artifact_root: str,
        experiment: str,
        seed: int,
        prepare_config: str,
        traces_config: str,
        filter_config: str,
        sft_config: str,
        grpo_config: str,
        benchmark_config: str,
        publish_config: str,
        data_until: str = "",
        traces_parts: list[str] = ["1/1"],  # noqa: B006  # KFP's own words for a default
        benchmark_parts: list[str] = ["1/1"],  # noqa: B006
        teacher_secret: str = "reasrm-teacher",  # noqa: S107  # a name
        gpu_type: str = "nvidia.com/gpu",
        gpus: str = "0",
        machine_cpu: str = "2",
        machine_memory: str = "8Gi",
        node_selector: dict[str, str] = {},  # noqa: B006
        tolerations: list[dict[str, Any]] = [],  # noqa: B006
    ) -> None:
        """Train a reasoning reward model: distil judgments, filter them, SFT, GRPO, benchmark, register.

        Args:
            preference_data: JSON list of sources: uris, or objects of uri, format, revision, select and weight.
            benchmarks: JSON list of benchmarks (name, uri, format, revision): kept out of training, judged at the end.
            base_model: Model to start from: s3:// uri, hub id with @<40-hex revision>, or a folder.
            teacher: JSON of the teacher that writes the judgments to learn from, or a list of teachers asked in turn.
            grammar: Form of a judgment: rubric (criteria or a solution, then the comparison) or think (free).
            model_name: Name in MLflow's model registry.
            artifact_root: S3 prefix of all artifacts; finished work found there is used again.
            experiment: MLflow experiment.
            seed: Seed of splits, training and intervals.
            prepare_config: JSON settings of prepare: cleaning, sizes of the parts.
            traces_config: JSON settings of traces: sampling, limits on calls and cost.
            filter_config: JSON settings of filter: what a judgment must keep to.
            sft_config: JSON settings of SFT.
            grpo_config: JSON settings of GRPO.
            benchmark_config: JSON settings of the benchmark.
            publish_config: JSON settings of the gate and of publish: thresholds, alias.
            data_until: Last day (YYYY-MM-DD) of dated preference data; schedule: the day a schedule gives; empty: all.
            traces_parts: Tasks that ask the teachers at the same time, as ["1/2", "2/2"].
            benchmark_parts: Tasks that judge at the same time, as ["1/2", "2/2"].
            teacher_secret: Kubernetes secret with the teachers' keys (OPENAI_API_KEY, ANTHROPIC_API_KEY).
            gpu_type: Resource that a GPU is asked for by.
            gpus: GPUs of each task that trains or judges, or of each machine of a TrainJob.
            machine_cpu: CPU cores of such a task or machine.
            machine_memory: Memory of such a task or machine.
            node_selector: JSON object: labels of the nodes for such tasks.
            tolerations: JSON list of tolerations of such tasks.
        """
        of_run = {
            "teacher_secret": teacher_secret,
            "gpu_type": gpu_type,
            "gpus": gpus,
            "machine_cpu": machine_cpu,
            "machine_memory": machine_memory,
            "node_selector": node_selector,
            "tolerations": tolerations,
        }

        def place(name: str, task: Any) -> Any:
            where.place(name, task, of_run)
            return task

        shared = {"artifact_root": artifact_root, "experiment": experiment}
        end = report(
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            experiment=experiment,
            base_model=base_model,
            preference_data=preference_data,
            seed=seed,
            artifact_root=artifact_root,
        )
        place("report", end)
        with dsl.ExitHandler(end, name="train and judge"), ExitStack() as rest:
            checked = preflight(
                preference_data=preference_data,
                benchmarks=benchmarks,
                base_model=base_model,
                teacher=teacher,
                grammar=grammar,
                model_name=model_name,
                seed=seed,
                prepare_config=prepare_config,
                traces_config=traces_config,
                filter_config=filter_config,
                sft_config=sft_config,
                grpo_config=grpo_config,
                benchmark_config=benchmark_config,
                publish_config=publish_config,
                data_until=data_until,
                traces_parts=traces_parts,
                benchmark_parts=benchmark_parts,
                scheduled=where.scheduled,
                run_name=where.run_name,
                placement=where.constants,
                **of_run,
                **shared,
            )
            place("preflight", checked)
            found = checked.outputs

            prepared = prepare(
                config=prepare_config,
                preference_data=preference_data,
                data_until=found["data_until"],
                benchmarks=benchmarks,
                seed=seed,
                content=found["prepare"],
                since=found["since"],
                **shared,
            )
            place("prepare", prepared)
            pairs = prepared.outputs["pairs"]
            # kfp.local finds the value of a plain If only where the output has KFP's own name, "Output".
            rest.enter_context(dsl.If(prepared.outputs["Output"] == True, name="anything new"))  # noqa: E712

            asking = {"config": traces_config, "teacher": teacher, "grammar": grammar, "pairs": pairs, **shared}
            asking["content"] = found["traces"]
            with dsl.ParallelFor(traces_parts, parallelism=MAX_PARALLEL) as part:
                asked = place("traces_part", traces_part(part=part, **asking))
            traced = traces(parts=dsl.Collected(asked.output), **asking)
            place("traces", traced)

            filtered = filter_traces(
                config=filter_config,
                grammar=grammar,
                content=found["filter"],
                pairs=pairs,
                traces=traced.outputs["traces"],
                **shared,
            )
            place("filter", filtered)
            examples = filtered.outputs["examples"]

            training: dict[str, Any] = {"seed": seed, "training_job": found["training_job"], **shared}
            start: dict[str, Any] = {"base_model": base_model, "warm_start": found["warm_start"]}
            tuned = sft(config=sft_config, content=found["sft"], examples=examples, **start, **training)
            place("sft", tuned)

            reinforced = grpo(
                config=grpo_config,
                grammar=grammar,
                content=found["grpo"],
                pairs=pairs,
                sft=tuned.outputs["model"],
                examples=examples,
                **training,
            )
            place("grpo", reinforced)
            models = {"sft": tuned.outputs["model"], "grpo": reinforced.outputs["model"]}

            judging: dict[str, Any] = {"config": benchmark_config, "base_model": base_model, "benchmarks": benchmarks}
            judging |= {"grammar": grammar, "seed": seed, "pairs": pairs, **models, **shared}
            with dsl.ParallelFor(benchmark_parts, parallelism=MAX_PARALLEL) as part:
                answered = place("benchmark_part", benchmark_part(part=part, **judging))
            judged = benchmark(parts=dsl.Collected(answered.output), **judging)
            place("benchmark", judged)
            scores = judged.outputs["scores"]

            asked_gate = gate(config=publish_config, model_name=model_name, scores=scores)
            place("gate", asked_gate)

            release = {"config": publish_config, "model_name": model_name, "pairs": pairs, "distillation": examples}
            with dsl.If(asked_gate.outputs["passed"] == True, name="good enough"):  # noqa: E712
                place("publish", publish(promote=True, benchmark=scores, **release, **models, **shared))
            with dsl.Else(name="not good enough"):
                place("publish", publish(promote=False, benchmark=scores, **release, **models, **shared))

    return reasrm
