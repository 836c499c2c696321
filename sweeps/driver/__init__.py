"""The driver of a sweep: between what executes trials and what records them.

driver           Driver: asks, starts, reports, ends
confirming       ConfirmingDriver: repeats of candidates instead of new trials
running          what a live trial is at, and whether it has run for too long
trial_record     trial.json of a trial that starts; result.json and adapter of one that has ended
late_files       LateFiles: what the disk does not take now is written later
tracked_runs     what the tracker is told of a sweep and of its trials
results_told     leaderboard, page and MLflow at the end, and once more when more is known
objective_fault  whether what a trial tells can be compared
predictor        Predictor: what new points will take, from a process of its own
budget           what may still start, and whether the sweep has failed
retention        which checkpoints and adapters stay
interrupts       SIGINT and SIGTERM
heartbeat        the pipe to the supervisor
"""
