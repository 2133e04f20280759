"""New releases of models become compress runs, each exactly once."""
