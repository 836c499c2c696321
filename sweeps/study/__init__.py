"""The Optuna study of a sweep: the one record of what was asked, seen, and how trials ended.

study            SweepStudy: asks, reports, ends, and what is adopted from an earlier driver
asker            from a sampler to a point that may be launched
point            Point: a trial that is to be launched
turned_away      which points are not launched, and why
violations       constraint values of a trial, measured or predicted
reruns           trials that are run again: failed ones, and repeats of candidates
draws            all parameters of a point drawn before any is written
history          the trials that a sampler is shown
pruning          the decision to prune, at a rung
cached_storage   the study's trials in the driver's memory
trial_rows       Optuna's storage, reading trials without its ORM
transaction      all changes of one trial in one transaction
database         opens the database, and waits for it
unanswered       ends calls that a server does not answer
lease            one driver per sweep
"""
