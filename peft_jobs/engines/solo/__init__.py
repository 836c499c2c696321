"""The solo engine: one trial at a time with transformers.Trainer; the reference.

solo_engine      SoloEngine
solo_trial       one attempt of a trial, from where it starts to its saved adapter
contents         what the trials of a sweep see, as fingerprints
batch_lengths    how long the rows are, for predictions
thread_times     how long a step takes with fewer threads
untrained        what a trial begins with, checked and measured before there is one
trainer          transformers.Trainer with a trial's order of rows, loss and reports
paged_states     the memory of paged optimizers, used again
adapter_export   an adapter scored again, and merged, on a fresh base
loaded_adapters  several adapters on one base, measured and combined
training_rows    examples as tokens, for other training tools
"""

from peft_jobs import log_filters  # noqa: F401  # before bitsandbytes speaks
