"""The demo: many workers, one provider, and a real token endpoint that is made to fail.

``server`` runs in a process of its own; ``remote`` starts it and talks to it; ``load`` is the workers; ``scenes`` is
the script; ``report`` is what was promised and what was seen; ``view`` shows it while it runs.
"""
