"""Measures of a model, one signature for all, used by the profile, by before-and-after comparisons, and alone.
Imports all rooms below it; no room imports it.
"""
