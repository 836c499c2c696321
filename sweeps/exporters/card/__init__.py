"""The README.md of an export.

model_card      what it holds, from top to bottom
card_sections   its sections
front_matter    its metadata, as the Hub reads them
"""
