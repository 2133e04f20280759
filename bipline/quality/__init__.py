"""What was lost and gained: perplexity, zero-shot tasks, speed, and recovery."""
