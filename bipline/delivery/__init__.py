"""What leaves the house: package, model card, report, registry and gate."""
