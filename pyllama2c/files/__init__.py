"""What is on disk: names to pinned files, what a file is, GGUF, a file written whole."""
