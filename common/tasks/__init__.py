"""Tasks: what is asked, how an answer is read and graded, where the data comes from, what a teacher is told."""
