"""Hidden states, from text to shuffled batches; knows nothing of dictionaries."""
