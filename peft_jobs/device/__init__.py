"""The device that trials run on: which it is, its memory, what it can do, and when it is lost.

this_device   the current GPU, or the CPU
memory        peak memory of one trial, and what to do when it runs out
host_copies   copies of tensors that another thread writes
slot_room     how many slots of a pack fit a GPU's memory
precision     autocast, TF32, and what a device cannot do
threads       as many as a host was given, or as there are cores free
free_cores    how many cores others leave
lost_device   a trial's error, or the device's loss
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks
