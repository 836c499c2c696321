"""What happens around the steps of a trial, whichever engine trains it.

attempt          what one attempt of a trial has, whichever engine trains it
loop             what a training run needs beside the model, and its evaluation
reporter         what happens between two steps: evaluations, reports, checkpoints
checkpoints      when a checkpoint is left, and where an attempt starts
writer           the thread that writes what trials leave
schedule         the learning rate of each step, where no Trainer keeps count of it
training_state   the tensors of a training run by name
counts           Counts: steps, samples and tokens so far
oom_ladder       what is tried when memory runs out
attempt_files    metrics.jsonl and log.txt of an attempt
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks
