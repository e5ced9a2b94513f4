"""What is asked, how answers are read and graded, which files hold the examples, and what a teacher is told.
Imports the ground alone, and loads neither jax nor numpy.
"""
