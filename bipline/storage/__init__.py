"""Bytes: digests, manifests, directories, stores, and the keys that name what is stored."""
