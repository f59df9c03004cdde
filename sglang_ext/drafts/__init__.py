"""What a successor is likely to write: drafts from references, and how many of them pay. Pure; no torch, no SGLang."""
