"""From a served model back to its source: what holds, what differs, what cannot be known."""
