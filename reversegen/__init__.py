"""ReverseGen (arXiv 2410.16736): a proposer learns to write what a target fails on; the target learns that."""
