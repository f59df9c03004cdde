"""What an answer says: its number, letter, program or last words, read whole or not at all. Pure, from text alone.

Early exit's ballots and the scorers of the benchmarks read with the same readers.
"""
