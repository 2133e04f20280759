"""ONNX: a graph with a KV cache, and its weights beside it, for ONNX Runtime."""
