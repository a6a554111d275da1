"""Llama inside other programs."""
