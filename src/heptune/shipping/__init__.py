"""What a run leaves, in the formats that other programs read; each proven by the program itself before it counts."""
