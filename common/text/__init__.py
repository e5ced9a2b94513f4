"""Figures of texts and sets of texts (lengths, lexical diversity, readability, likeness) and the search for
near-duplicates. Imports `sample` for vectors of meaning, nothing else of a model, and `tasks` for what a row is.
"""
