"""What everything stands on: errors and progress."""
