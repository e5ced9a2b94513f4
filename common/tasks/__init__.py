"""Tasks: prompts, how answers are read and graded, which files hold the examples, and what a teacher is told.
Imports the base modules of `common` only, and loads neither jax nor numpy.
"""
