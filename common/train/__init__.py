"""Forward and backward passes: supervised training on answers, and on preferences. Imports the ground, `results`
(whole folders), `model` and `sample` (the reference's log-likelihoods).
"""
