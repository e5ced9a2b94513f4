"""Forward passes without gradients: answers drawn from a model, by beam search, log-likelihoods of given texts,
and vectors of texts. Imports the ground and `model`.
"""
