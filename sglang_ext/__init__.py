"""Graft's extension of SGLang, loaded by SGLang itself as a plugin. Importing this package is free of effects."""
