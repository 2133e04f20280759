"""The image of the steps: how it is built, and what is in it."""
