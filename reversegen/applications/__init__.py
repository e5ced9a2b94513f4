"""What failing means: a wrong answer (`math`), an unsure one (`honesty`), or what a judge says (`conduct`), behind
the one protocol of `base`.
"""
