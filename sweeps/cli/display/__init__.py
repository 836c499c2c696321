"""How a sweep is shown on a terminal.

live       progress that is drawn again in place
plain      progress as lines
snapshot   a running sweep at one moment
work_left  what it still has to train
stages     what it is at before its first trial
outcome    what came of a launch
data_summary  what would be trained
plan_words what a sweep will take
table      the leaderboard as a table
"""
