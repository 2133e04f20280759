"""Where packages are registered."""
