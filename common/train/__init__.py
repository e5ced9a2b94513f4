"""Forward and backward passes: supervised training on answers, and on preferences. Imports the ground, `model`,
`sample` (the reference's log-likelihoods) and `results` (where states are stored).
"""
