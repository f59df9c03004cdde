"""`graft run`: questions asked in several settings (a tree, and how it is run), compared."""
