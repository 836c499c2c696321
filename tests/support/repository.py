"""The folders of this checkout, and of the real inputs beside it."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
"""Real models and data; absent on most machines, and then the tests that want them are skipped."""
