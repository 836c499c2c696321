"""The report of a sweep: one HTML page that stands alone, and asks no network for anything.

report     `write_report`: what the page shows, in order
page       the page around its sections: styles, scripts, and what it forbids itself
tables     tables of the page: the leaderboard, which sorts, and lists of facts
facts      cost, data and environment
figures    the objective of trials by number, by samples, and against what they cost
repeats    what a confirmation has measured, seed by seed
explained  what each parameter explains of how the trials did
lanes      when trials ran, and where
pictures   some of the figures as PNG files
parallel   the ranked trials' parameters: Optuna's parallel coordinates

`page.css`, `page.js`: the page's own; plotly.js is the installed package's.
"""
