"""A harmless policy to try `--task safety` on."""
