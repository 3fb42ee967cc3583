"""Adapters to other libraries. Each module imports its optional dependency, and nothing imports them."""
