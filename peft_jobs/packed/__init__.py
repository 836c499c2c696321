"""The packed engine: several trials on one frozen base, in one batched step.

Imports torch; reached by name (`peft_jobs.engines`).
"""
