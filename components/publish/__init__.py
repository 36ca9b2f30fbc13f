"""Publish: decide whether the judge is good enough, register it, and write down what it is.

In:   the manifests of pairs, distillation (the filter's output), sft, grpo and benchmark, and their small files.
Out:  `decision.json` (every check of the gate), `model_card.md` and `report.html` (self-contained). In MLflow's
      registry one version of the model, tagged with the gate's verdict; if it passed, the alias points to it.
Cost: seconds on one core; the weights stay where they are. It is the one stage that needs MLflow to answer.
"""
