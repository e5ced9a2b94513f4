"""What a model is like: text, toxicity, social bias, calibration, utility and preference (passive inheritance)."""
