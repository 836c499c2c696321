"""What came of a sweep: read from its study, ranked, and drawn.

leaderboard   the trials, ranked
selection     the best of each value, and Pareto fronts
reports       the leaderboard as JSON, CSV, HTML and Markdown
plots         Optuna's plots
export        a trial's adapter, scored again as written
model_card    the model card of an export
"""
