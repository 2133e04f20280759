"""What users may set: one frozen class per concern. Nothing here imports torch."""
