"""Where replies come from: a model in this process, a hosted one, a function. Replies that were paid for are kept,
and budgets hold. Imports the ground, `model`, `tasks` and `lm`.
"""
