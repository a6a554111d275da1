"""The HTTP server: OpenAI's API and llama.cpp's on one engine thread."""
