"""What a run leaves behind: the run directory with its artifacts, statistics, the data set, the page. Imports the
ground alone, and loads no jax.
"""
