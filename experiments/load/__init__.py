"""`graft bench load`: an open-loop load test of a running router or of a cluster started for it."""
