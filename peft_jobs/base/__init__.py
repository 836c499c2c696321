"""The base model of a trial: loaded, quantized, kept between trials, and put back as it was.

loading              Base, and how one is loaded
quantization         bitsandbytes' side of it
stored_quantization  a checkpoint that is quantized already, against what is asked
weight_shares        how much is quantized, and what is not
resident             the base and the data that stay loaded between trials
architecture         class, modules and head, from the configuration alone
text_reach           modules that no text reaches: towers for images and sound
heads                heads that the checkpoint lacks
own_classes          the classes that a base's own head has, and those of the data
tokenizer            the tokenizer, which can pad
languages            those of a model that translates, as its tokenizer marks them
vocabulary           token ids against the embedding table
positions            lengths of rows against tables of positions
content_hash         a cheap hash of all tensors, which shows whether a trial changed them
snapshot             parts of a base kept aside, to put it back exactly
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks
