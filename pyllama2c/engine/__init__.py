"""What Python holds of the C side: models, sessions, threads, and the memory they take."""
