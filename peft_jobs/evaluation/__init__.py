"""What is measured of a model.

scoring          metrics of a model on a split
row_scores       what an evaluation has found of each row, as a file
majority         metrics of the majority class, which looks at no row
generation       metrics of the answers that a model writes
decoding         how answers begin and end
samples          some answers, for people to read
serving          the same, as an exported model's generation settings
custom_metrics   a person's own metrics
"""

from peft_jobs import log_filters  # noqa: F401  # isort: skip  # before bitsandbytes speaks
