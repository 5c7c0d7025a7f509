"""What benchmarks/speed.py measures, part by part, and its report."""
