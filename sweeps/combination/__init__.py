"""Several trained adapters of one base become one: soups, and combinations by given weights.

compose            from a sweep and what is asked to the exported combination
ingredients        the adapters, by trial
agreement          refuses those of different bases or tasks, or that PEFT cannot combine
soups              uniform, greedy and weighted ones, measured and judged on the validation rows
on_test_rows       the test split, read afterwards
contest_words      what came of it, in sentences
combination_card   the README.md of what is exported
"""
