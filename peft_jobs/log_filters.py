"""Keeps notices off the screen that are known to be harmless; import it before torch's libraries.

Only the messages below are dropped, each by its own text: every other warning of the same loggers
still comes through.
"""

import logging
import warnings

HARMLESS = {
    # A kernel package that is not a dependency; the built-in kernels are used.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # Said for every layer of every forward of an int8 base whose activations are not float16.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
    # The list of missing weights; `load_base` refuses them or initialises them itself.
    "transformers.modeling_utils": "LOAD REPORT",
    # Said under a wrong name; `settle` refuses such a base with the true reason.
    "transformers.integrations.bitsandbytes": "You are loading your model using eetq",
}


def _drop(text: str) -> logging.Filter:
    class Drop(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return text not in str(record.msg)

    return Drop(name=text)


# PEFT 0.21.2 asks for a property that transformers 5.23 has renamed.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
# PEFT sets it to True itself, as GPT-2's Conv1D layers need it.
warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False but the target module")

for _name, _text in HARMLESS.items():
    logging.getLogger(_name).addFilter(_drop(_text))
