"""Measurements of speed. They are run by hand: a busy machine must not make a test fail."""
