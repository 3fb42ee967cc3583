"""What can be decided without waiting: pure functions and frozen state, no clock, no task, no Trio."""
