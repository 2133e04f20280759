"""What everything stands on: errors, progress, extras and bundled files."""
