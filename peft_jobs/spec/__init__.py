"""What a trial is: `TrialSpec` and its sections, as frozen data; light: it needs no torch.

trial             TrialSpec, and its sections model, quantization, training, evaluation
data              the section data
tasks             the section task, a union on `type`
adapters          the section adapter, a union on `method`
generation        the section evaluation.generation
fields            the types of fields, and the base of all sections
cells             the text of a cell, and the structure that its text tells
combination       how saved adapters are combined, and which can be
templates         `{column}` templates
dotted            dotted names of a spec's fields
units             sizes and durations as people write them: `22GB`, `2h`
memory_settings   the settings that decide memory, and the next smaller ones
mistakes          what is wrong with a spec, in words
"""

from peft_jobs.spec.adapters import ADAPTERS, AdapterSpec, LoraSpec
from peft_jobs.spec.data import (
    COMPRESSED,
    DEMO,
    FILE_FORMATS,
    SOURCES,
    DataSpec,
    Source,
    file_format,
)
from peft_jobs.spec.generation import GenerationSpec
from peft_jobs.spec.tasks import (
    TASK_SPECS,
    CausalLMSpec,
    QuestionAnsweringSpec,
    Seq2SeqSpec,
    SequenceClassificationSpec,
    TaskSpec,
    TokenClassificationSpec,
)
from peft_jobs.spec.trial import (
    INCOMPATIBLE,
    EvaluationSpec,
    ModelSpec,
    QuantizationSpec,
    TrainingSpec,
    TrialSpec,
)

__all__ = [
    "ADAPTERS",
    "COMPRESSED",
    "DEMO",
    "FILE_FORMATS",
    "INCOMPATIBLE",
    "SOURCES",
    "TASK_SPECS",
    "AdapterSpec",
    "CausalLMSpec",
    "DataSpec",
    "EvaluationSpec",
    "GenerationSpec",
    "LoraSpec",
    "ModelSpec",
    "QuantizationSpec",
    "QuestionAnsweringSpec",
    "Seq2SeqSpec",
    "SequenceClassificationSpec",
    "Source",
    "TaskSpec",
    "TokenClassificationSpec",
    "TrainingSpec",
    "TrialSpec",
    "file_format",
]
