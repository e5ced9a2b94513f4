"""The two checkpoints that come with seedloop, and how they are trained. Imports `model`, `train` and `tasks`;
nothing imports it.
"""
