"""`graft report`: tables and pictures of finished experiments, for people."""
