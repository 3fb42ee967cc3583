"""Benchmarks: ratios against a limit or a peer measured in the same run. ``python -m benchmarks`` prints and writes them."""
