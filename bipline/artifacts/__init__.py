"""The bottom layer: typed values, digests, manifests, atomic directories and the Store."""
