"""The line of stages: key, find or produce, handle; written once, and only called by drivers.

``stage`` says what a stage is, each stage has a file, and ``line`` is the way through them. A
driver (the command line, a step of a pipeline, a row of a comparison) brings a Store and settings.
"""
