"""`peft-sweep`: the command line. Importing it is light; each command imports what it needs.

app          the commands: names, arguments, help
commands     what they do
display      how a sweep is shown on a terminal
options      arguments and options that several commands share
screen       results to stdout, everything else to stderr
exit_codes   exceptions, as one line and an exit code
devices      what this machine computes with
preflight    what a sweep's data hold, before its base is loaded
supervisor   starts a sweep's driver, again when it dies or hangs
"""

from sweeps.cli.app import main

__all__ = ["main"]
