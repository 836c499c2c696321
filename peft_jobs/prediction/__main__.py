"""`python -m peft_jobs.prediction`: predicts the trials that come in, line by line.

The first line is what `PredictedTrials` takes, as JSON: device, lengths, among; each further one is
a TrialSpec. To each of those goes one line: a PredictedTrial, or `{"error": ...}`. It ends with its
input.
"""

import json
import os
import sys

from peft_jobs.host.gpus import Device
from peft_jobs.host.prediction import Lengths
from peft_jobs.prediction.predicted_trials import PredictedTrials
from peft_jobs.spec import TrialSpec


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print now and then
    asked = json.loads(sys.stdin.readline())
    trials = PredictedTrials(
        Device.model_validate(asked["device"]),
        Lengths.model_validate(asked["lengths"]),
        [TrialSpec.model_validate(each) for each in asked["among"]],
    )
    for line in sys.stdin:
        try:
            answer = trials.of(TrialSpec.model_validate_json(line)).model_dump_json()
        except Exception as error:  # of torch, PEFT, the Hub: the trial is tried instead
            told = " ".join(f"{type(error).__name__}: {error}".split())
            answer = json.dumps({"error": told})
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
