"""From a file to records: what shape its rows have, how they are split, and what is wrong with them.

`shapes` turns one row into a `Record`, `readers` turns a file into rows and names its format (`stream` those that need
not fit into memory, `encoding` its bytes into text), `splits` divides records into parts that share no text, `check`
says before any training what is wrong with a data set (`tally` counts for it). Imports no torch.
"""
