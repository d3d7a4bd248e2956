"""What is measured, against whom; `results/` holds the records of real runs."""
