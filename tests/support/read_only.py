"""A folder that must not be written, also not by root, and a command that obeys."""

import os
import stat
from pathlib import Path

_BYPASS = "-dac_override,-dac_read_search,-fowner"
OBEYING = ["setpriv", "--bounding-set", _BYPASS, "--inh-caps", _BYPASS] if os.geteuid() == 0 else []
"""Words in front of a command that make root obey permissions."""


def make_read_only(folder: Path) -> None:
    """Take the right to write from a folder and all that is in it."""
    for path in (*folder.rglob("*"), folder):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)


def make_writable(folder: Path) -> None:
    """The other way round, for the owner."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o200)
