"""Small language models that ship with the project, the text they learned from, and the script that made them."""
