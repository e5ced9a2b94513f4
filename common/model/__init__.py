"""The decoder and everything that belongs to a checkpoint: parameters, tokenizer, adapters, losses, the files of a
Hugging Face folder, and where arrays lie on devices. Imports the ground alone.
"""
