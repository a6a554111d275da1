"""Conversations as tokens: a model's own template, or Llama 2's format."""
