"""Package data: the embedded model, its tokenizer, and the registry of known models."""
