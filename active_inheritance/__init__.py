"""Active Inheritance (arXiv 2407.01490): choose what a student learns from by what it should become."""
