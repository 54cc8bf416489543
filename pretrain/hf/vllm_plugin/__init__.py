"""A plug-in of vLLM that serves exported looped models: weights once, keys and values for every loop and layer."""
