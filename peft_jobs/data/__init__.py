"""The data of a trial: read, chosen, and made into tokens.

sources          rows of a file, of the Hub, of the demo
conversations    conversations in the forms of other tools
hub              rows of a Hub data set
text_files       rows of text files, byte for byte
text_lines       lines of text files, compressed ones too
task_rows        what a task is given of a row
selection        hold-out, subset, and checks of rows
labels           the classes of a head, and what a cell says about them
classes          the classes among the training rows
class_labels     labels that a data set holds as numbers and names itself
label_lists      lists of labels: vectors of 0 and 1, or names of classes
fingerprints     of how a row becomes tokens
tokenized        the cache of tokenized examples
summary          what is told of the data before training
survey           looks through the data for it
token_lengths    tokens of rows, and what the limits make of them
example_text     an example as text, with what is supervised in it
leaks            held-out rows whose input is trained on too
sample_packing   several samples in one row
sample_order     the order in which a trial sees its rows
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks
