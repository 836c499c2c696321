"""`peft-sweep`: the command line. Importing it is light; each command imports what it needs."""

from sweeps.cli.app import main

__all__ = ["main"]
