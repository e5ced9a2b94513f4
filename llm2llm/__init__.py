"""LLM2LLM (arXiv 2403.15042): fine-tune a student, find what it gets wrong, let a teacher write more of that."""
