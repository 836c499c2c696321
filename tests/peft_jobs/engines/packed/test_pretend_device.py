"""The engines keep an accelerator's rules: devices that match, and a host that does not wait."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.repository import REPOSITORY

HERE = Path(__file__).with_name("on_pretend_device.py")


def test_what_both_engines_do_on_an_accelerator() -> None:
    """In a process of its own: torch takes a device that it does not know before any backward."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-8000:]
    assert re.search(r"\b\d+ passed", found.stdout)
    assert not re.search(r"\d+ (skipped|deselected)", found.stdout)
