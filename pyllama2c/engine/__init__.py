"""Handles on the C engine: models, sessions, threads, and the memory they take."""
