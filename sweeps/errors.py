"""What can go wrong with a driver that is nobody's mistake."""

from peft_jobs import PeftJobsError, SpecError


class Unavailable(SpecError):
    """The cluster or the database cannot be reached now; it may be in a while."""


class LeaseLost(PeftJobsError, RuntimeError):
    """Another driver has taken the sweep over; this one must not write any more."""


class StudyGone(PeftJobsError, RuntimeError):
    """Somebody has deleted the study while it was driven."""
