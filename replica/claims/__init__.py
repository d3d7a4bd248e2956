"""The paper's claims: what runs, what is expected, and the verdict.

Experiments are series of trainings (`trials`), which a queue runs one after the other (`queue`) and
of which each leaves a small record; verdicts are made of records and of arithmetic alone.
"""
