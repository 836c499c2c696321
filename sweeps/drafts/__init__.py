"""Sweep files to start from.

starter       the commented file of a task, with base, data and preset put in
guesses       the task that the columns of a file of data tell
first_rows    the first rows of a file of data
imports       other tools' files as sweep files
"""
