"""What a trial will take of a device, from config.json alone: its own steps on fake tensors.

predicted_trials    PredictedTrials: one trial after the other, and their memory ladders
predict             predict: trials in, what they take out
depth               the whole base from a few of its layers
shapes              which trials take the same
roofline            seconds from kernels
solo_steps          steps of a trial alone
packed_steps        packed steps of K slots
fake_base           the base and its adapter without weights
unvalued            PEFT's initialisations without values
quantized_layers    quantized layers by shape
batches             rows of a given length
optimizers          optimizer and clipping as the Trainer has them
attention           the attention kernel that a device takes
int8_products       8-bit products as a device has them
meter               storages and kernels, operator by operator
operator_outputs    what operators give, remembered by shapes
operations          what one operator is to a device
caching_allocator   what CUDA's allocator reserves
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks
