"""The packed engine: several trials on one frozen base, in one batched step.

A pack is the parameters of several trials, flat, one row each; a slot is room for one trial.

packed_engine   PackedEngine: the loop
admission       which waiting trials begin now
eligibility     which trials can share a step, and why others cannot
parts           what a trial trains, and what that starts with
forms           LoRA, DoRA, (IA)3, VeRA and MiSS of all slots: a folder
queue           jobs that wait for room
packed_trial    one trial in a pack, from where it starts to its result
trial_metrics   what one trial measures of itself
rounds          one chunk for every trial that may go on
step            one packed step
slot_masks      dropout of all slots, drawn layer by layer
micro_batches   the data of one trial, cut into chunks
evaluations     several trials evaluated in one pass
composition     the pack that is on the base now, and its memory
pack            flat state of several trials, and the layers that use it
row             parameters, optimizer and schedule of one row
layout          where a trial's parameters lie in its row
base_traits     what a base does in training that its structure does not show
slot_count      before the first trial: how many slots are worth it
calibration     while trials run: how many slots share a step
adapter         a row as an ordinary PEFT adapter, and as a checkpoint
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks
