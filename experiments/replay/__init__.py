"""`graft replay RUN`: recorded runs decide again, from their records and event logs alone."""
