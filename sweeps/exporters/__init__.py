"""EXPORTERS: the forms in which a trained adapter leaves a sweep, by name.

export          chooses the trials, begins the folder, has the exporters write, makes the card
forms           writes the forms that were asked for, one after the other
exporter        Exporter, the protocol; what an exporter works with
peft            the adapter as PEFT reads it, scored as loaded again
merged          base and adapter as one unquantized model, scored as loaded again
training_tool   an exporter for a tool that trains: its files, and what it does otherwise
recipe          what such a tool must be told, and what none can be told
trl             for TRL: a script, and the same for its command line
trl_script      the script
axolotl         for Axolotl
llama_factory   for LLaMA-Factory
vllm            serves adapter or merged model with vLLM
ollama          makes an Ollama model of the merged model
rayjob          trains on all data on Kubernetes
registration    makes an export a version of a registered model of MLflow's
hub             puts an export into a repository of the Hugging Face Hub
names           base and data as other programs find them
card            the README.md of an export
loading_code    the Python in it, which loads the adapter

A new form is one file here and one entry in EXPORTERS.
"""

from sweeps.exporters.axolotl import AXOLOTL
from sweeps.exporters.exporter import Draft, Exporter
from sweeps.exporters.llama_factory import LLAMA_FACTORY
from sweeps.exporters.merged import MergedExporter
from sweeps.exporters.ollama import OllamaExporter
from sweeps.exporters.peft import PeftExporter
from sweeps.exporters.rayjob import RayJobExporter
from sweeps.exporters.trl import TRL
from sweeps.exporters.vllm import VllmExporter

EXPORTERS: dict[str, Exporter] = {
    "peft": PeftExporter(),
    "merged": MergedExporter(),
    "trl": TRL,
    "axolotl": AXOLOTL,
    "llama-factory": LLAMA_FACTORY,
    "vllm": VllmExporter(),
    "ollama": OllamaExporter(),
    "rayjob": RayJobExporter(),
}

__all__ = ["EXPORTERS", "Draft", "Exporter"]
