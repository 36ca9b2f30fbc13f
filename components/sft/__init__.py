"""Supervised fine-tuning: teach the base model to judge as the kept traces do.

In:   the filter's examples (judge prompt, completion) and a base model.
Out:  `model/` (safetensors, tokenizer, chat template) and `metrics.jsonl` (loss per step).
Cost: one pass over the examples, forward and backward; on a GPU minutes to hours, on two CPU cores about 400 tokens/s
      for a model of 135M parameters. Checkpoints go to S3 while it trains, and a killed run resumes from the newest.
      It runs in one process or in several, sharded or not; the order of the rows and the losses are the same.
"""
