"""Text to token ids and back: llama2.c's vocabularies, and those of GGUF files."""
