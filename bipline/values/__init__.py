"""What passes between stages: small typed values, each with a digest of its own."""
