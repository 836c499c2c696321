"""PredictedTrials: what trials of a sweep will take, asked for one after the other.

What their shapes have in common is run once. Where a trial does not fit its GPU as it is, the
memory ladder that it would go down (`memory_settings`) is gone down here.
"""

from collections.abc import Sequence

from peft_jobs.host.gpus import GIB, Device
from peft_jobs.host.prediction import MARGIN, Lengths, PredictedTrial, Prediction
from peft_jobs.prediction.predict import Whole, predict
from peft_jobs.prediction.shapes import ranks_of
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.memory_settings import LadderRung, below, settings_of, with_settings


class PredictedTrials:
    """Of one device, on rows of these lengths."""

    def __init__(self, device: Device, lengths: Lengths, among: Sequence[TrialSpec] = ()) -> None:
        """`among` are trials such as may be asked for: LoRA's ranks are taken from between the
        lowest and the highest of them."""
        self._device, self._lengths = device, lengths
        self._ranks = ranks_of(among)
        self._known: dict[str, Whole] = {}

    def of(self, spec: TrialSpec) -> PredictedTrial:
        """Raises like `predict`."""
        first = found = self._predict(spec)
        settings, ladder = settings_of(spec), None
        while self._device.kind == "cuda" and not found.fits_within(MARGIN):
            lower = below(settings, "train")
            if lower is None:
                return PredictedTrial(prediction=first, fits=False)
            ladder = LadderRung(
                phase="train",
                step=0,
                tried=settings,
                peak={"peak_reserved_bytes": found.peak_bytes},
                error=f"predicted to take {found.peak_bytes / GIB:.1f} GiB of "
                f"{found.usable_bytes / GIB:.1f}",
                is_predicted=True,
            )
            settings = lower
            found = self._predict(with_settings(spec, settings))
        return PredictedTrial(prediction=found, ladder=ladder, fits=True)

    def _predict(self, spec: TrialSpec) -> Prediction:
        [found] = predict([spec], self._device, self._lengths, ranks=self._ranks, known=self._known)
        return found
