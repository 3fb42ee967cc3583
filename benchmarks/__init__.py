"""Benchmarks: ratios against a limit or a peer measured in one run. ``python -m benchmarks`` prints and writes them."""
