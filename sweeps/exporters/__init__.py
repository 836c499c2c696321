"""EXPORTERS: the forms in which a trained adapter leaves a sweep, by name.

export     chooses the trial, begins the folder, has the exporters write, makes the card
exporter   Exporter, the protocol; what an exporter works with
peft       the adapter as PEFT reads it, scored as loaded again
merged     base and adapter as one unquantized model, scored as loaded again

A new form is one file here and one entry in EXPORTERS.
"""

from sweeps.exporters.exporter import Draft, Exporter
from sweeps.exporters.merged import MergedExporter
from sweeps.exporters.peft import PeftExporter

EXPORTERS: dict[str, Exporter] = {"peft": PeftExporter(), "merged": MergedExporter()}

__all__ = ["EXPORTERS", "Draft", "Exporter"]
