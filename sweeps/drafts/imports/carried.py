"""What of another tool's file a sweep file takes over, and what it does not, with the reason."""

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from peft_jobs import SpecError, TrialSpec
from peft_jobs.spec.mistakes import mistakes
from sweeps.drafts.imports.meanings import OFF, SWITCHES, dotted_of, reason, trial_paths, value_of

_HORIZONS = ("num_train_epochs", "max_samples", "max_steps")
_ONE_LENGTH = "all trials of a sweep are of one length (`budget`)"


class Carried:
    """A sweep file's mapping into which settings are put one by one; what it cannot hold is left,
    with the reason."""

    def __init__(self, tree: Mapping[str, Any], given: frozenset[str] = frozenset()) -> None:
        """`tree` is a valid sweep file to begin with; a person has `given` what is so called here,
        and it stays."""
        self.tree: dict[str, Any] = copy.deepcopy(dict(tree))
        self.given = given
        self.parameters: dict[str, Any] = {}
        """What is sampled, in the language of `space.parameters`."""
        self.fixed: dict[str, Any] = {}
        """What all trials have, by dotted name."""
        self.left: dict[str, str] = {}
        """What is not taken over, by their name, with the reason."""
        self.said: list[str] = []
        """What was settled that their file does not say."""
        self._seen: dict[str, str] = {}
        """Their names of what this file has set, by ours."""

    def fix(self, theirs: str, value: Any) -> None:
        """One value for all trials; null is no setting."""
        key = theirs.rpartition(".")[2]
        if value is None or (key in SWITCHES and not value):
            return
        if key in SWITCHES:
            self.put(theirs, *SWITCHES[key])
            return
        dotted = dotted_of(theirs)
        if dotted is None:
            self.leave(theirs)
        elif dotted in trial_paths():
            self.put(theirs, dotted, value_of(dotted, value))
        elif (name := dotted.removeprefix("budget.")) in _HORIZONS:
            self._last(theirs, name, value)
        else:
            self.leave(theirs)

    def begin(self) -> None:
        """Another file begins, whose values replace those of earlier ones."""
        self._seen.clear()

    def sample(self, theirs: str, parameter: Mapping[str, Any]) -> None:
        """A parameter: {choices} or {low, high, ...}."""
        key = theirs.rpartition(".")[2]
        dotted = SWITCHES[key][0] if key in SWITCHES else dotted_of(theirs)
        if dotted is None or (key in SWITCHES and dotted not in OFF):
            return self.leave(theirs)
        if dotted not in trial_paths():
            is_length = dotted.startswith("budget.")
            return self.leave(theirs, _ONE_LENGTH if is_length else "it is no setting of a trial")
        if "choices" in parameter:
            taken = [self._choice(key, dotted, value) for value in parameter["choices"]]
            parameter = {"choices": taken}
        ends = parameter.get("choices") or [parameter["low"], parameter["high"]]
        wrong = [why for end in ends if (why := self._fault(dotted, end)) is not None]
        if wrong:
            return self.leave(theirs, wrong[0])
        self.parameters[dotted] = dict(parameter)
        return None

    def put(self, theirs: str, dotted: str, value: Any) -> None:
        """Set what is `dotted` here, if that is valid beside what was set before."""
        if dotted in self.given:
            self.leave(theirs, "another one is given")
            return
        if dotted in self._seen:
            self.leave(theirs, f"{self._seen[dotted]} says the same (`{dotted}`)")
            return
        if (why := self._fault(dotted, value)) is not None:
            self.leave(theirs, why)
            return
        _set(self.tree, dotted, value)
        self.fixed[dotted], self._seen[dotted] = value, theirs

    def replace(self, theirs: str, sections: Mapping[str, Any]) -> None:
        """Put whole sections in the place of those there are, if they are valid; the length that
        rows are cut to stays."""
        before = self.tree
        data = {"max_length": before["data"].get("max_length", 512), **sections.get("data", {})}
        self.tree = {**before, **sections, "data": data}
        if (why := self._fault("seed", 0)) is not None:
            self.tree = before
            self.leave(theirs, why)
        else:
            self.fixed |= {"task": sections["task"], "data": data}

    def leave(self, theirs: str, why: str | None = None) -> None:
        """Note what is not taken over."""
        self.left[theirs] = why or reason(theirs)

    def _last(self, theirs: str, name: str, value: Any) -> None:
        """How long a trial is, in epochs, samples or steps; -1 is no setting."""
        if isinstance(value, int | float) and value <= 0:
            return
        if "budget" in self._seen:
            self.leave(theirs, f"{self._seen['budget']} says how long a trial is")
            return
        kept = {k: v for k, v in self.tree["budget"].items() if k not in _HORIZONS}
        self.tree["budget"] = {name: value, **kept}
        self.fixed[f"budget.{name}"], self._seen["budget"] = value, theirs

    def _choice(self, key: str, dotted: str, value: Any) -> Any:
        if key in SWITCHES:
            return SWITCHES[key][1] if value else OFF[dotted]
        return value_of(dotted, value)

    def _fault(self, dotted: str, value: Any) -> str | None:
        """Why a trial cannot have this value; None if it can."""
        sections = {name: self.tree[name] for name in TrialSpec.model_fields if name in self.tree}
        try:
            TrialSpec.model_validate(sections).with_params({dotted: value})
        except ValidationError as error:
            return _words(error)
        except (SpecError, ValueError) as error:
            return str(error)
        return None


def _words(error: ValidationError) -> str:
    return "; ".join(str(mistake) for mistake in mistakes(error, TrialSpec))


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    node = tree
    for parent in parents:
        inner = node.get(parent)
        node[parent] = inner = inner if isinstance(inner, dict) else {}
        node = inner
    node[leaf] = value
