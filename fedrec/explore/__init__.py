"""Exploring and judging what was explored: which item a place is given to by chance, and what another policy would have earned.

`places` draws lists with exact propensities, `beliefs` says how uncertain the value of each item is, `log` reads what was
shown, `estimators` and `intervals` are the formulas of off-policy evaluation on arrays, and `evaluating` joins them.
"""
