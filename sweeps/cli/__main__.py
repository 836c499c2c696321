"""`python -m sweeps.cli`: the command line, wherever its script lies."""

from sweeps.cli import main

main()
