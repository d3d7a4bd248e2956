"""A search over fields of a recipe: a training for each choice of values.

`space` reads what is varied, `study` keeps Optuna's record of the trials, `trials` runs one,
`queue` runs what is missing, `outcome` and `pictures` show what came of it.
"""
