"""Requests, sampling, stories, batches, scores."""
