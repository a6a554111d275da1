"""What is asked of a model and what is told: requests, stories, batches, scores."""
