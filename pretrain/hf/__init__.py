"""Hugging Face: import and export of weights and tokenizers."""
