"""Stacks as files, and a team's servers on one machine for the stack `server`."""
