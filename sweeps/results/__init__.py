"""What came of a sweep: read from its study, ranked, and drawn.

recorded_sweep   `open_sweep`: a sweep in its storage, to be read
states           what a trial is at, in one word
leaderboard      the trials, ranked, as data
ranking          which rank each has: the leaderboard of a study
comparable       which trials may be ranked together
told_apart       which rows the validation rows tell from the first
trials           all trials of a study as data
curves           what trials reported while they ran
rows             what a trial's last evaluation found of each row
row_metrics      metrics as functions of how often each row counts
repeated_rows    what other rows would change in a confirmation
row_intervals    how far two trials are apart on their rows: a paired bootstrap
importances      which parameters decided how trials did
selection        the best of each value, and Pareto fronts
reports          the leaderboard as JSON, CSV, HTML and Markdown
prediction_error how far predictions were from what was measured
final_training   what a final training came to: the median seed, the mean over seeds
verdict          what the sweep says, in plain words
words            values and sizes as a person reads them
"""
